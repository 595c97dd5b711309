package client

import (
	"context"
	"encoding/json"
	"iter"
	"maps"
	"net/http"
	"net/url"
	"strconv"
	"time"
)

// User is an account.
type User struct {
	ID        string    `json:"id"`
	Email     string    `json:"email"`
	Name      string    `json:"name,omitempty"`
	Role      string    `json:"role,omitempty"` // "root" for a platform administrator
	Status    string    `json:"status"`
	Factors   bool      `json:"second_factor"`
	Org       string    `json:"org_id,omitempty"`
	CreatedAt time.Time `json:"created_at"`
}

// Organisation owns devices, credentials and keys.
type Organisation struct {
	ID          string         `json:"id"`
	Number      uint32         `json:"number"`
	Name        string         `json:"name"`
	Description string         `json:"description"`
	Limits      map[string]int `json:"limits"`
	CreatedAt   time.Time      `json:"created_at"`
}

// Member is a user's role in an organisation.
type Member struct {
	ID        string    `json:"member_id"`
	Email     string    `json:"email"`
	Role      string    `json:"role"`
	CreatedAt time.Time `json:"created_at"`
}

// Key is an API key. Value is there only where it was just made.
type Key struct {
	ID         string     `json:"id"`
	Name       string     `json:"name"`
	Prefix     string     `json:"prefix"`
	Scopes     []string   `json:"scopes,omitempty"`
	Org        string     `json:"org_id,omitempty"`
	IssuedAt   time.Time  `json:"issued_at"`
	ExpiresAt  *time.Time `json:"expires_at,omitempty"`
	LastUsedAt *time.Time `json:"last_used_at,omitempty"`
	LastUsedIP string     `json:"last_used_ip,omitempty"`
	Value      string     `json:"value,omitempty"`
}

// NewKey is an API key to be made.
type NewKey struct {
	Type     int      `json:"type"`
	Name     string   `json:"name,omitempty"`
	Duration int64    `json:"duration,omitempty"` // seconds; 0 is for ever
	Scopes   []string `json:"scopes,omitempty"`
	Org      string   `json:"org_id,omitempty"`
	CIDRs    []string `json:"allowed_cidrs,omitempty"`
}

// Thing is a device as a thing. Its keys are there only where they were just
// made, or are revealed.
type Thing struct {
	ID          string          `json:"id"`
	Name        string          `json:"name"`
	Type        string          `json:"type"`
	Group       string          `json:"group_id,omitempty"`
	Key         string          `json:"key,omitempty"`
	ExternalKey string          `json:"external_key,omitempty"`
	Metadata    json.RawMessage `json:"metadata,omitempty"`
	CreatedAt   time.Time       `json:"created_at"`
}

// NewThing is a thing to be made.
type NewThing struct {
	Name        string          `json:"name"`
	Type        string          `json:"type"`
	Key         string          `json:"key,omitempty"`
	ExternalKey string          `json:"external_key,omitempty"`
	Metadata    json.RawMessage `json:"metadata,omitempty"`
}

// window is the most items asked for at a time from a list that is cut by offset.
const window = 200

// listWindow goes through a list that is cut by offset, whose items stand under name.
func listWindow[T any](ctx context.Context, c *Client, path, name string, query url.Values) iter.Seq2[T, error] {
	return func(yield func(T, error) bool) {
		q := url.Values{"limit": {strconv.Itoa(window)}, "dir": {"asc"}}
		maps.Copy(q, query)
		for offset := 0; ; offset += window {
			q.Set("offset", strconv.Itoa(offset))
			out, err := Do[map[string]json.RawMessage](ctx, c, http.MethodGet, path, q, nil)
			var items []T
			if err == nil {
				err = json.Unmarshal(out[name], &items)
			}
			if err != nil {
				var zero T
				yield(zero, err)
				return
			}
			for _, item := range items {
				if !yield(item, nil) {
					return
				}
			}
			if len(items) < window {
				return
			}
		}
	}
}

// LogIn exchanges an address, a password and, where it is needed, the code of a
// second factor for a login key.
func (c *Client) LogIn(ctx context.Context, email, password, code string) (string, error) {
	in := map[string]string{"email": email, "password": password}
	if code != "" {
		in["code"] = code
	}
	out, err := Do[struct{ Token string }](ctx, c, http.MethodPost, "/tokens", nil, in)
	return out.Token, err
}

// Users lists the accounts; status is "all", or one of their states.
func (c *Client) Users(ctx context.Context, status string) iter.Seq2[User, error] {
	return listWindow[User](ctx, c, "/users", "users", url.Values{"status": {status}})
}

// User returns an account by id, or the caller's own for "profile".
func (c *Client) User(ctx context.Context, id string) (User, error) {
	return Do[User](ctx, c, http.MethodGet, Path("users", id), nil, nil)
}

// CreateUser makes an account. Without a password its user sets one with a recovery key.
func (c *Client) CreateUser(ctx context.Context, email, password string, platform bool) error {
	in := map[string]any{"email": email, "platform_admin": platform}
	if password != "" {
		in["password"] = password
	}
	_, err := Do[struct{}](ctx, c, http.MethodPost, "/users", nil, in)
	return err
}

// DeleteUser removes an account.
func (c *Client) DeleteUser(ctx context.Context, id string) error {
	_, err := Do[struct{}](ctx, c, http.MethodDelete, Path("users", id), nil, nil)
	return err
}

// EnableUser lets an account be used.
func (c *Client) EnableUser(ctx context.Context, id string) error {
	_, err := Do[struct{}](ctx, c, http.MethodPost, Path("users", id, "enable"), nil, nil)
	return err
}

// DisableUser refuses an account and every key of it.
func (c *Client) DisableUser(ctx context.Context, id string) error {
	_, err := Do[struct{}](ctx, c, http.MethodPost, Path("users", id, "disable"), nil, nil)
	return err
}

// Recovery is a recovery key of a user.
type Recovery struct {
	Value     string    `json:"value"`
	Link      string    `json:"link"`
	ExpiresAt time.Time `json:"expires_at"`
}

// RecoverUser returns a recovery key of a user, to hand over.
func (c *Client) RecoverUser(ctx context.Context, id string) (Recovery, error) {
	return Do[Recovery](ctx, c, http.MethodPost, Path("users", id, "recovery-key"), nil, nil)
}

// Passkey is a passkey of a user.
type Passkey struct {
	ID         string     `json:"id"`
	Name       string     `json:"name"`
	Synced     bool       `json:"synced"`
	CreatedAt  time.Time  `json:"created_at"`
	LastUsedAt *time.Time `json:"last_used_at,omitempty"`
}

// Passkeys returns the passkeys of a user, oldest first.
func (c *Client) Passkeys(ctx context.Context, user string) ([]Passkey, error) {
	v, err := Do[struct {
		Passkeys []Passkey `json:"passkeys"`
	}](ctx, c, http.MethodGet, Path("users", user, "passkeys"), nil, nil)
	return v.Passkeys, err
}

// DeletePasskey ends a passkey of a user; it takes a login.
func (c *Client) DeletePasskey(ctx context.Context, user, id string) error {
	_, err := Do[struct{}](ctx, c, http.MethodDelete, Path("users", user, "passkeys", id), nil, nil)
	return err
}

// ResetSecondFactor takes all second factors of a user away; it takes the login of
// a platform administrator.
func (c *Client) ResetSecondFactor(ctx context.Context, user string) error {
	_, err := Do[struct{}](ctx, c, http.MethodDelete, Path("users", user, "second-factor"), nil, nil)
	return err
}

// Invite is what lets somebody in, with the link to hand over where no mail is sent.
type Invite struct {
	ID        string    `json:"id"`
	Email     string    `json:"email"`
	Org       string    `json:"org_id,omitempty"`
	Role      string    `json:"role,omitempty"`
	State     string    `json:"state"`
	Link      string    `json:"link,omitempty"`
	ExpiresAt time.Time `json:"expires_at"`
}

// Invite invites the holder of an address to an organisation, or to the server
// alone if org is empty.
func (c *Client) Invite(ctx context.Context, org, email, role string) (Invite, error) {
	if org == "" {
		return Do[Invite](ctx, c, http.MethodPost, "/invites", nil, map[string]string{"email": email})
	}
	return Do[Invite](ctx, c, http.MethodPost, Path("orgs", org, "invites"), nil, map[string]string{"email": email, "role": role})
}

// Organisations lists the caller's organisations; all for a platform administrator.
func (c *Client) Organisations(ctx context.Context) iter.Seq2[Organisation, error] {
	return listWindow[Organisation](ctx, c, "/orgs", "orgs", nil)
}

// CreateOrganisation makes an organisation.
func (c *Client) CreateOrganisation(ctx context.Context, name, description string) (Organisation, error) {
	return Do[Organisation](ctx, c, http.MethodPost, "/orgs", nil, map[string]string{"name": name, "description": description})
}

// DeleteOrganisation removes an organisation that has no devices.
func (c *Client) DeleteOrganisation(ctx context.Context, id string) error {
	_, err := Do[struct{}](ctx, c, http.MethodDelete, Path("orgs", id), nil, nil)
	return err
}

// Members lists the members of an organisation.
func (c *Client) Members(ctx context.Context, org string) iter.Seq2[Member, error] {
	return listWindow[Member](ctx, c, Path("orgs", org, "memberships"), "org_memberships", nil)
}

// SetMember gives the user with an address a role; add says that it is no member yet.
func (c *Client) SetMember(ctx context.Context, org, email, role string, add bool) error {
	method := http.MethodPut
	if add {
		method = http.MethodPost
	}
	in := map[string]any{"org_memberships": []map[string]string{{"email": email, "role": role}}}
	_, err := Do[struct{}](ctx, c, method, Path("orgs", org, "memberships"), nil, in)
	return err
}

// RemoveMember ends a membership, by the user's id.
func (c *Client) RemoveMember(ctx context.Context, org, user string) error {
	_, err := Do[struct{}](ctx, c, http.MethodPatch, Path("orgs", org, "memberships"), nil, map[string][]string{"member_ids": {user}})
	return err
}

// Keys lists the caller's API keys, or those of another user.
func (c *Client) Keys(ctx context.Context, user string) iter.Seq2[Key, error] {
	path := "/keys"
	if user != "" {
		path = Path("users", user, "keys")
	}
	return listWindow[Key](ctx, c, path, "keys", nil)
}

// CreateKey makes an API key for the caller, who must have logged in.
func (c *Client) CreateKey(ctx context.Context, n NewKey) (Key, error) {
	n.Type = 2
	return Do[Key](ctx, c, http.MethodPost, "/keys", nil, n)
}

// RevokeKey ends an API key of the caller, or of another user.
func (c *Client) RevokeKey(ctx context.Context, user, id string) error {
	path := Path("keys", id)
	if user != "" {
		path = Path("users", user, "keys", id)
	}
	_, err := Do[struct{}](ctx, c, http.MethodDelete, path, nil, nil)
	return err
}

// Things lists the things of the organisation.
func (c *Client) Things(ctx context.Context, name, kind string) iter.Seq2[Thing, error] {
	q := url.Values{}
	if name != "" {
		q.Set("name", name)
	}
	if kind != "" {
		q.Set("type", kind)
	}
	return listWindow[Thing](ctx, c, "/things", "things", q)
}

// Thing returns a thing, without its keys.
func (c *Client) Thing(ctx context.Context, id string) (Thing, error) {
	return Do[Thing](ctx, c, http.MethodGet, Path("things", id), nil, nil)
}

// CreateThing makes a thing, and returns it with its keys.
func (c *Client) CreateThing(ctx context.Context, n NewThing) (Thing, error) {
	out, err := Do[struct{ Things []Thing }](ctx, c, http.MethodPost, "/things", nil, []NewThing{n})
	if err != nil || len(out.Things) != 1 {
		return Thing{}, err
	}
	return out.Things[0], nil
}

// DeleteThing removes a thing.
func (c *Client) DeleteThing(ctx context.Context, id string) error {
	_, err := Do[struct{}](ctx, c, http.MethodDelete, Path("things", id), nil, nil)
	return err
}

// RotateThing gives a thing a new internal key; the old one works for grace yet.
func (c *Client) RotateThing(ctx context.Context, id string, grace time.Duration) (Thing, error) {
	return Do[Thing](ctx, c, http.MethodPost, Path("things", id, "key", "rotate"), nil, map[string]int64{"grace_seconds": int64(grace.Seconds())})
}

// RevealThing returns a thing with its keys. It leaves a record.
func (c *Client) RevealThing(ctx context.Context, id string) (Thing, error) {
	return Do[Thing](ctx, c, http.MethodGet, Path("things", id, "key"), nil, nil)
}

// SetExternalKey sets the external key of a thing; "" takes it away.
func (c *Client) SetExternalKey(ctx context.Context, id, key string) error {
	path := Path("things", id, "external-key")
	if key == "" {
		_, err := Do[struct{}](ctx, c, http.MethodDelete, path, nil, nil)
		return err
	}
	_, err := Do[struct{}](ctx, c, http.MethodPut, path, nil, map[string]string{"key": key})
	return err
}
