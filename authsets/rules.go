package authsets

import (
	"context"
	"encoding/json"
	"net/netip"
	"regexp"
	"strings"
	"time"

	"keystead/audit"
	"keystead/fault"
	"keystead/id"
	"keystead/identity"
	"keystead/page"
	"keystead/store"
)

// Rule accepts sets with no person looking. All of its conditions have to hold.
type Rule struct {
	ID        string    `cbor:"id"`
	Org       string    `cbor:"org"`
	Name      string    `cbor:"name"`
	Attribute string    `cbor:"attribute,omitempty"` // of the identity, which Equals or Matches
	Equals    string    `cbor:"equals,omitempty"`
	Matches   string    `cbor:"matches,omitempty"` // a regular expression (RE2) of all of it
	CIDRs     []string  `cbor:"cidrs,omitempty"`   // the request comes from one of them
	Key       []byte    `cbor:"key,omitempty"`     // PKIX; signs the identity, see Voucher
	Until     time.Time `cbor:"until,omitzero"`
	Most      int       `cbor:"most,omitempty"` // sets it accepts; 0 for any number
	Used      int       `cbor:"used,omitempty"` // sets it has accepted
	CreatedAt time.Time `cbor:"created"`
}

// Voucher is the attribute that holds the signature a Rule's Key asks for: in base64, of
// the canonical identity without this attribute, made as a device signs its requests.
const Voucher = "voucher"

var rules = store.NewTable("accept rule",
	store.Index[Rule]{Name: "org", Counted: true, Terms: func(r Rule) []store.Term { return store.Terms(r.Org) }})

// maxRules is how many rules an organisation has.
const maxRules = 100

// speaksFor says what accepts a pending set: the device's certificate, or a rule; "" if
// nothing does.
func (s *Service) speaksFor(tx store.Tx, org string, r Request, c claim, v *voucher) (string, error) {
	if v != nil {
		return "mtls/" + v.name(), nil
	}
	if n, err := rules.Count(tx, "org", store.TermOf(org)); n == 0 || err != nil {
		return "", err
	}
	p, err := rules.PageBy(tx, "org", store.TermOf(org), page.Request{Limit: maxRules})
	if err != nil {
		return "", err
	}
	for _, rule := range p.Items {
		if rule.accepts(r, c, s.Now()) {
			return "rule/" + rule.ID, nil
		}
	}
	return "", nil
}

// countRule counts one use, if by is a rule.
func (s *Service) countRule(tx store.Tx, by string) error {
	ruleID, ok := strings.CutPrefix(by, "rule/")
	if !ok {
		return nil
	}
	_, err := rules.Update(tx, ruleID, func(r *Rule) error {
		r.Used++
		return nil
	})
	return err
}

func (r *Rule) accepts(q Request, c claim, now time.Time) bool {
	return (r.Until.IsZero() || now.Before(r.Until)) &&
		(r.Most == 0 || r.Used < r.Most) &&
		(len(r.CIDRs) == 0 || r.from(q.Remote)) &&
		(r.Attribute == "" || r.likes(c.identity.Attributes()[r.Attribute])) &&
		(r.Key == nil || r.signed(c.identity))
}

func (r *Rule) from(a netip.Addr) bool {
	for _, text := range r.CIDRs {
		if p, err := netip.ParsePrefix(text); err == nil && p.Contains(a.Unmap()) {
			return true
		}
	}
	return false
}

func (r *Rule) likes(v string) bool {
	if v == "" {
		return false
	}
	if r.Matches == "" {
		return v == r.Equals
	}
	re, err := regexp.Compile(whole(r.Matches))
	return err == nil && re.MatchString(v)
}

func whole(expr string) string { return `\A(?:` + expr + `)\z` }

// signed reports whether the rule's key signed the identity.
func (r *Rule) signed(id Canonical) bool {
	key, _, err := parseDER(r.Key)
	if err != nil {
		return false
	}
	var all map[string]json.RawMessage
	if err := json.Unmarshal([]byte(id), &all); err != nil {
		return false
	}
	var signature string
	if err := json.Unmarshal(all[Voucher], &signature); err != nil {
		return false
	}
	delete(all, Voucher)
	rest, err := json.Marshal(all)
	if err != nil {
		return false
	}
	plain, err := Canonicalise(rest)
	return err == nil && signed(key, []byte(plain), signature)
}

// AddRule makes a rule for the actor's organisation from r's conditions.
func (s *Service) AddRule(ctx context.Context, r Rule) (Rule, error) {
	now := s.Now().UTC()
	r.ID, r.Org, r.Used, r.CreatedAt = id.New(now), identity.OrgOf(ctx), 0, now
	if err := r.check(); err != nil {
		return r, err
	}
	return r, s.DB.Update(ctx, func(tx store.Tx) error {
		n, err := rules.Count(tx, "org", store.TermOf(r.Org))
		if err != nil {
			return err
		}
		if n >= maxRules {
			return fault.New(fault.TooLarge, "the organisation has %d accept rules; remove one first", n)
		}
		if err := rules.Insert(tx, r.ID, r); err != nil {
			return err
		}
		return s.Audit.Append(ctx, tx, audit.Entry{Action: "accept_rule.create", Target: r.ID})
	})
}

func (r *Rule) check() error {
	var bad []fault.Field
	note := func(ok bool, field, message string) {
		if !ok {
			bad = append(bad, fault.Field{Name: field, Message: message})
		}
	}
	note(r.Name != "" && len(r.Name) <= 128, "name", "has 1 to 128 bytes")
	note(r.Attribute != "" || len(r.CIDRs) > 0 || r.Key != nil, "attribute", "give an attribute, networks or a key: a rule does not accept everything")
	note((r.Attribute == "") == (r.Equals == "" && r.Matches == ""), "attribute", "goes with equals or matches")
	note(r.Equals == "" || r.Matches == "", "matches", "give it or equals, not both")
	note(len(r.Attribute) <= 256 && len(r.Equals) <= 1024 && len(r.Matches) <= 1024, "attribute", "is too long")
	_, err := regexp.Compile(whole(r.Matches))
	note(err == nil, "matches", "is no regular expression")
	note(len(r.CIDRs) <= 32, "cidrs", "has at most 32 networks")
	for _, text := range r.CIDRs {
		_, err := netip.ParsePrefix(text)
		note(err == nil, "cidrs", "a network is written such as 192.168.7.0/24")
	}
	note(r.Most >= 0, "most", "is a number of sets")
	return fault.InvalidFields(bad...)
}

// Rules lists the accept rules of the actor's organisation.
func (s *Service) Rules(ctx context.Context, r page.Request) (p page.Page[Rule], err error) {
	err = s.DB.View(ctx, func(tx store.Tx) error {
		p, err = rules.PageBy(tx, "org", store.TermOf(identity.OrgOf(ctx)), r)
		return err
	})
	return p, err
}

// RemoveRule removes an accept rule. What it accepted stays accepted.
func (s *Service) RemoveRule(ctx context.Context, ruleID string) error {
	return s.DB.Update(ctx, func(tx store.Tx) error {
		r, err := rules.Get(tx, ruleID)
		if err != nil {
			return err
		}
		if r.Org != identity.OrgOf(ctx) {
			return fault.New(fault.NotFound, "no such accept rule")
		}
		if _, err := rules.Delete(tx, ruleID); err != nil {
			return err
		}
		return s.Audit.Append(ctx, tx, audit.Entry{Action: "accept_rule.delete", Target: ruleID})
	})
}
