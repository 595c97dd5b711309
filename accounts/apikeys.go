package accounts

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"keystead/fault"
	"keystead/id"
	"keystead/identity"
	"keystead/seal"
	"keystead/store"
	"keystead/throttle"
)

// apiKeyKind is the word in the text of an API key: keystead_api_….
const apiKeyKind = "api"

// APIKey is a long-lived key of a user, for scripts.
type APIKey struct {
	ID          string          `cbor:"id"`
	User        string          `cbor:"user"`
	Org         string          `cbor:"org,omitempty"` // the one it is limited to; "" for all of its user's
	Name        string          `cbor:"name,omitempty"`
	Description string          `cbor:"desc,omitempty"`
	Hash        []byte          `cbor:"hash"`
	Scopes      []identity.Need `cbor:"scopes,omitempty"` // nil: all its user may do
	CIDRs       []string        `cbor:"cidrs,omitempty"`  // where it may be used from; none: anywhere
	IssuedAt    time.Time       `cbor:"issued"`
	IssuedFrom  string          `cbor:"issuedfrom,omitempty"`
	ExpiresAt   time.Time       `cbor:"expires,omitzero"` // zero: never
}

// Prefix is the part of a key's text that is no secret, by which its owner knows it again.
func (k APIKey) Prefix() string { return "keystead_" + apiKeyKind + "_…" + k.ID[len(k.ID)-4:] }

// use is when and from where a key was last used.
type use struct {
	At   time.Time `cbor:"at"`
	From string    `cbor:"from"`
}

var (
	keyTable = store.NewTable("key",
		store.Index[APIKey]{Name: "user", Counted: true, Terms: func(k APIKey) []store.Term { return store.Terms(k.User) }},
		store.Index[APIKey]{Name: "org", Counted: true, Terms: func(k APIKey) []store.Term {
			if k.Org == "" {
				return nil
			}
			return store.Terms(k.Org)
		}},
	)
	useTable = store.NewTable[use]("key use")
)

// NewAPIKey is what an API key is made from.
type NewAPIKey struct {
	Name        string
	Description string
	TTL         time.Duration // 0: never expires
	Scopes      []identity.Need
	Org         string
	CIDRs       []string
	From        netip.Addr // where the request came from
}

// CreateAPIKey makes a key for the acting user and returns it with its text,
// which nobody can be shown again. It takes somebody who has logged in, with a
// fresh second factor where one is set up.
func (s *Service) CreateAPIKey(ctx context.Context, n NewAPIKey) (k APIKey, text seal.Secret, err error) {
	a, err := self(ctx)
	if err != nil {
		return k, nil, err
	}
	if err := interactive(a); err != nil {
		return k, nil, err
	}
	if err := s.fresh(ctx); err != nil {
		return k, nil, err
	}
	if err := n.check(s.Config.MaxAPIKeyTTL); err != nil {
		return k, nil, err
	}
	now := s.Now().UTC()
	ticket := seal.NewTicket(apiKeyKind, id.New(now))
	k = APIKey{
		ID: ticket.ID, User: a.ID, Org: n.Org, Name: n.Name, Description: n.Description, Hash: ticket.Hash(),
		Scopes: n.Scopes, CIDRs: n.CIDRs, IssuedAt: now,
	}
	if n.From.IsValid() {
		k.IssuedFrom = n.From.String()
	}
	if n.TTL > 0 {
		k.ExpiresAt = now.Add(n.TTL)
	}
	err = s.DB.Update(ctx, func(tx store.Tx) error { return s.insertKey(ctx, tx, k) })
	return k, ticket.Text(), err
}

func (n *NewAPIKey) check(longest time.Duration) error {
	var bad []fault.Field
	note := func(field, format string, args ...any) {
		bad = append(bad, fault.Field{Name: field, Message: fmt.Sprintf(format, args...)})
	}
	if len(n.Name) > 256 || !plain(n.Name) {
		note("name", "at most 256 bytes of text")
	}
	if len(n.Description) > 1024 || !plain(n.Description) {
		note("description", "at most 1024 bytes of text")
	}
	if n.TTL < 0 {
		note("duration", "must not be negative")
	}
	if longest > 0 && (n.TTL == 0 || n.TTL > longest) {
		note("duration", "keys live %d seconds at most here", int(longest.Seconds()))
	}
	for _, scope := range n.Scopes {
		if !slices.Contains(identity.Permissions(), scope) {
			note("scopes", "there is no permission %q", scope)
		}
	}
	if len(n.Scopes) == 0 {
		n.Scopes = nil // an empty list would be a key that may do nothing
	}
	if len(n.CIDRs) > 32 {
		note("allowed_cidrs", "at most 32")
	}
	for i, text := range n.CIDRs {
		p, err := parsePrefix(text)
		if err != nil {
			note("allowed_cidrs", "%q is no address and no CIDR", text)
			continue
		}
		n.CIDRs[i] = p.String()
	}
	return fault.InvalidFields(bad...)
}

func parsePrefix(text string) (netip.Prefix, error) {
	if !strings.Contains(text, "/") {
		a, err := netip.ParseAddr(text)
		if err != nil {
			return netip.Prefix{}, err
		}
		return a.Unmap().Prefix(a.Unmap().BitLen())
	}
	p, err := netip.ParsePrefix(text)
	return p.Masked(), err
}

func (s *Service) insertKey(ctx context.Context, tx store.Tx, k APIKey) error {
	if n, err := keyTable.Count(tx, "user", store.TermOf(k.User)); err != nil {
		return err
	} else if n >= s.Config.MaxKeysPerUser {
		return fault.New(fault.TooLarge, "the user has %d API keys, the most allowed; revoke some first", n)
	}
	if k.Org != "" {
		if err := s.keyInOrg(tx, k); err != nil {
			return err
		}
	}
	if err := keyTable.Insert(tx, k.ID, k); err != nil {
		return err
	}
	return s.note(ctx, tx, k.Org, "key.create", k.ID, map[string]string{"name": k.Name, "user": k.User})
}

// keyInOrg refuses a key limited to an organisation its user is not in, or that
// has all the keys it may have.
func (s *Service) keyInOrg(tx store.Tx, k APIKey) error {
	o, err := orgTable.Get(tx, k.Org)
	if err != nil {
		return err
	}
	u, err := userTable.Get(tx, k.User)
	if err != nil {
		return err
	}
	if role, err := roleIn(tx, u, k.Org); err != nil || role == identity.NoRole {
		return fault.New(fault.NotFound, "no such organisation")
	}
	n, err := keyTable.Count(tx, "org", store.TermOf(k.Org))
	if err == nil && o.Limits.APIKeys > 0 && n >= o.Limits.APIKeys {
		err = fault.New(fault.TooLarge, "the organisation has the %d API keys it may have", n)
	}
	return err
}

// APIKeyUse is a key and its last use.
type APIKeyUse struct {
	APIKey
	LastUsedAt   time.Time
	LastUsedFrom string
}

// APIKeys returns all keys of a user, oldest first: the actor's own, or
// anybody's for a platform administrator; NotFound else.
func (s *Service) APIKeys(ctx context.Context, userID string) (list []APIKeyUse, err error) {
	if _, err := s.User(ctx, userID); err != nil {
		return nil, err
	}
	for k, err := range keyTable.All(ctx, s.DB, "user", store.TermOf(userID)) {
		if err != nil {
			return nil, err
		}
		list = append(list, APIKeyUse{APIKey: k})
	}
	err = s.DB.View(ctx, func(tx store.Tx) error {
		for i := range list {
			if err := s.addUse(tx, &list[i]); err != nil {
				return err
			}
		}
		return nil
	})
	return list, err
}

// APIKey returns one key of a user, as [Service.APIKeys] does.
func (s *Service) APIKey(ctx context.Context, userID, keyID string) (k APIKeyUse, err error) {
	if _, err := s.User(ctx, userID); err != nil {
		return k, err
	}
	err = s.DB.View(ctx, func(tx store.Tx) error {
		if k.APIKey, err = keyTable.Get(tx, keyID); err != nil {
			return err
		}
		if k.User != userID {
			return fault.New(fault.NotFound, "no such key")
		}
		return s.addUse(tx, &k)
	})
	if err != nil {
		return APIKeyUse{}, err
	}
	return k, nil
}

func (s *Service) addUse(tx store.Tx, k *APIKeyUse) error {
	s.usedMu.Lock()
	u, fresh := s.used[k.ID]
	s.usedMu.Unlock()
	if !fresh {
		var err error
		if u, err = useTable.Get(tx, k.ID); err != nil && !fault.Is(err, fault.NotFound) {
			return err
		}
	}
	k.LastUsedAt, k.LastUsedFrom = u.At, u.From
	return nil
}

// RevokeAPIKey ends a key of a user; its next use is refused. Revoking one that
// is not there, or is another user's, is no error and does nothing.
func (s *Service) RevokeAPIKey(ctx context.Context, userID, keyID string) error {
	if _, err := s.User(ctx, userID); err != nil {
		return err
	}
	return s.DB.Update(ctx, func(tx store.Tx) error {
		k, err := keyTable.Get(tx, keyID)
		if fault.Is(err, fault.NotFound) || err == nil && k.User != userID {
			return nil
		}
		if err != nil {
			return err
		}
		return s.dropKey(ctx, tx, k)
	})
}

func (s *Service) dropKey(ctx context.Context, tx store.Tx, k APIKey) error {
	if _, err := keyTable.Delete(tx, k.ID); err != nil {
		return err
	}
	if _, err := useTable.Delete(tx, k.ID); err != nil && !fault.Is(err, fault.NotFound) {
		return err
	}
	s.moved(tx)
	return s.note(ctx, tx, k.Org, "key.revoke", k.ID, map[string]string{"name": k.Name, "user": k.User})
}

// allowedFrom reports whether k may be used from an address.
func (k APIKey) allowedFrom(a netip.Addr) bool {
	if len(k.CIDRs) == 0 {
		return true
	}
	return slices.ContainsFunc(k.CIDRs, func(text string) bool {
		p, err := parsePrefix(text)
		return err == nil && p.Contains(a.Unmap())
	})
}

// markUsed remembers a use; Run writes it down.
func (s *Service) markUsed(keyID string, from netip.Addr) {
	s.usedMu.Lock()
	defer s.usedMu.Unlock()
	s.used[keyID] = use{At: s.Now().UTC().Truncate(time.Second), From: throttle.Prefix(from)}
}

// flushUses writes down when keys were last used.
func (s *Service) flushUses(ctx context.Context) error {
	s.usedMu.Lock()
	used := s.used
	s.used = map[string]use{}
	s.usedMu.Unlock()
	if len(used) == 0 {
		return nil
	}
	return s.DB.Update(ctx, func(tx store.Tx) error {
		for keyID, u := range used {
			known, err := keyTable.Has(tx, keyID)
			if err != nil {
				return err
			}
			if !known {
				continue
			}
			if err := useTable.Set(tx, keyID, u); err != nil {
				return err
			}
		}
		return nil
	})
}
