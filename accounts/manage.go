package accounts

import (
	"cmp"
	"context"
	"encoding/json"
	"net/netip"
	"slices"
	"strings"
	"time"

	"keystead/fault"
	"keystead/id"
	"keystead/identity"
	"keystead/page"
	"keystead/seal"
	"keystead/store"
	"keystead/throttle"
)

// all returns every record with a term, for lists that are short by their limits.
func all[T any](tx store.Tx, t *store.Table[T], index string, term store.Term) ([]T, error) {
	var list []T
	r := page.Request{Limit: page.MaxLimit}
	for {
		p, err := t.PageBy(tx, index, term, r)
		list = append(list, p.Items...)
		if err != nil || p.Next == "" {
			return list, err
		}
		r.After = p.Next
	}
}

// List says which part of a list is wanted, and in what order.
type List struct {
	Offset, Limit int
	Order         string // a field's name
	Ascending     bool
}

// maxList is how many records a list that is sorted looks at.
const maxList = 10_000

// cut sorts list by the order's field and returns the wanted part.
func cut[T any](list []T, l List, by map[string]func(a, b T) int) ([]T, int) {
	compare := by[l.Order]
	slices.SortStableFunc(list, func(a, b T) int {
		if l.Ascending {
			return compare(a, b)
		}
		return compare(b, a)
	})
	from := min(l.Offset, len(list))
	return list[from:min(from+l.Limit, len(list))], len(list)
}

func collect[T any](ctx context.Context, db store.Engine, t *store.Table[T], index string, term store.Term, keep func(T) bool) ([]T, error) {
	var list []T
	for v, err := range t.All(ctx, db, index, term) {
		if err != nil {
			return nil, err
		}
		if keep(v) {
			if list = append(list, v); len(list) > maxList {
				return nil, fault.New(fault.TooLarge, "more than %d match; narrow the search", maxList)
			}
		}
	}
	return list, nil
}

// UserFilter narrows a list of users.
type UserFilter struct {
	Email  string // part of the address
	Status Status // "" for all
}

var userOrders = map[string]func(a, b User) int{
	"id":    func(a, b User) int { return strings.Compare(a.ID, b.ID) },
	"email": func(a, b User) int { return strings.Compare(canonical(a.Email), canonical(b.Email)) },
}

// Users returns the part of the users that l asks for, and how many there are
// in all; for platform administrators.
func (s *Service) Users(ctx context.Context, f UserFilter, l List) ([]User, int, error) {
	if userOrders[l.Order] == nil {
		return nil, 0, fault.New(fault.Invalid, "invalid list order provided: id or email")
	}
	index, term := "status", store.TermOf(string(f.Status))
	if f.Status == "" {
		index, term = "", ""
	}
	part := canonical(f.Email)
	list, err := collect(ctx, s.DB, userTable, index, term, func(u User) bool { return strings.Contains(canonical(u.Email), part) })
	if err != nil {
		return nil, 0, err
	}
	list, total := cut(list, l, userOrders)
	return list, total, nil
}

// SetMetadata replaces the acting user's metadata.
func (s *Service) SetMetadata(ctx context.Context, m json.RawMessage) error {
	a, err := self(ctx)
	if err != nil {
		return err
	}
	if err := fault.InvalidFields(checkMetadata(m)...); err != nil {
		return err
	}
	return s.DB.Update(ctx, func(tx store.Tx) error {
		_, err := userTable.Update(tx, a.ID, func(u *User) error {
			u.Metadata, u.UpdatedAt = m, s.Now().UTC()
			return nil
		})
		if err != nil {
			return err
		}
		return s.note(ctx, tx, "", "user.update", a.ID, nil)
	})
}

// ErrLastAdministrator keeps somebody able to administer.
var ErrLastAdministrator = fault.New(fault.Conflict, "this is the last enabled platform administrator; make another one first")

// SetStatus enables or disables an account; for platform administrators. A
// disabled user's every key, session and token is refused from now on, and its
// login keys and sessions stay dead when it is enabled again. Setting what is
// set changes nothing.
func (s *Service) SetStatus(ctx context.Context, userID string, to Status) error {
	if to == Enabled {
		if err := s.fresh(ctx); err != nil {
			return err
		}
	}
	return s.editUser(ctx, userID, "user."+strings.TrimSuffix(string(to), "d"), func(u *User) bool {
		if u.Status == to {
			return false
		}
		u.Status = to
		u.Epoch++
		return true
	})
}

// SetPlatform makes a user a platform administrator, or ends that; for platform administrators.
func (s *Service) SetPlatform(ctx context.Context, userID string, to bool) error {
	if to {
		if err := s.fresh(ctx); err != nil {
			return err
		}
	}
	return s.editUser(ctx, userID, "user.platform", func(u *User) bool {
		if u.Platform == to {
			return false
		}
		u.Platform = to
		u.Epoch++
		return true
	})
}

// EndSessions ends all login keys, sessions and OAuth tokens of a user.
func (s *Service) EndSessions(ctx context.Context, userID string) error {
	if _, err := s.User(ctx, userID); err != nil {
		return err
	}
	return s.editUser(ctx, userID, "user.signout", func(u *User) bool {
		u.Epoch++
		return true
	})
}

// editUser changes a user, unless that would leave no administrator.
func (s *Service) editUser(ctx context.Context, userID, action string, change func(*User) bool) error {
	return s.DB.Update(ctx, func(tx store.Tx) error {
		changed := false
		u, err := userTable.Update(tx, userID, func(u *User) error {
			changed = change(u)
			u.UpdatedAt = s.Now().UTC()
			return nil
		})
		if err != nil || !changed {
			return err
		}
		n, err := userTable.Count(tx, "administrators", store.TermOf(""))
		if err != nil {
			return err
		}
		if n == 0 {
			return ErrLastAdministrator
		}
		s.moved(tx)
		return s.note(ctx, tx, "", action, u.ID, nil)
	})
}

// DeleteUser removes an account with its keys, memberships and sessions; for
// platform administrators.
func (s *Service) DeleteUser(ctx context.Context, userID string) error {
	return s.DB.Update(ctx, func(tx store.Tx) error {
		if _, err := userTable.Delete(tx, userID); err != nil {
			return err
		}
		if n, err := userTable.Count(tx, "administrators", store.TermOf("")); err != nil {
			return err
		} else if n == 0 {
			return ErrLastAdministrator
		}
		if err := s.dropKeysOf(ctx, tx, userID); err != nil {
			return err
		}
		members, err := all(tx, memberTable, "user", store.TermOf(userID))
		if err != nil {
			return err
		}
		for _, m := range members {
			if err := s.leave(ctx, tx, m); err != nil {
				return err
			}
		}
		if err := dropFactorsOf(tx, userID); err != nil {
			return err
		}
		sessions, err := all(tx, sessionTable, "user", store.TermOf(userID))
		if err != nil {
			return err
		}
		for _, x := range sessions {
			if _, err := sessionTable.Delete(tx, x.ID); err != nil {
				return err
			}
		}
		s.moved(tx)
		return s.note(ctx, tx, "", "user.delete", userID, nil)
	})
}

// Organisations

var orgOrders = map[string]func(a, b Organisation) int{
	"id": func(a, b Organisation) int { return strings.Compare(a.ID, b.ID) },
	"name": func(a, b Organisation) int {
		return cmp.Or(strings.Compare(a.Name, b.Name), strings.Compare(a.ID, b.ID))
	},
	"created_at": func(a, b Organisation) int { return a.CreatedAt.Compare(b.CreatedAt) },
	"updated_at": func(a, b Organisation) int { return a.UpdatedAt.Compare(b.UpdatedAt) },
}

// Organisations returns the part that l asks for of the organisations the
// actor is in, all of them for a platform administrator, and how many there are.
func (s *Service) Organisations(ctx context.Context, name string, l List) ([]Organisation, int, error) {
	if orgOrders[l.Order] == nil {
		return nil, 0, fault.New(fault.Invalid, "invalid list order provided: id, name, created_at or updated_at")
	}
	a := identity.FromContext(ctx)
	match := func(o Organisation) bool { return strings.Contains(strings.ToLower(o.Name), strings.ToLower(name)) }
	var list []Organisation
	var err error
	if a.May(identity.Platform) {
		list, err = collect(ctx, s.DB, orgTable, "", "", match)
	} else {
		list, err = s.orgsOf(ctx, a, match)
	}
	if err != nil {
		return nil, 0, err
	}
	list, total := cut(list, l, orgOrders)
	return list, total, nil
}

func (s *Service) orgsOf(ctx context.Context, a identity.Actor, match func(Organisation) bool) ([]Organisation, error) {
	members, err := collect(ctx, s.DB, memberTable, "user", store.TermOf(a.ID), func(Member) bool { return true })
	if err != nil {
		return nil, err
	}
	var list []Organisation
	err = s.DB.View(ctx, func(tx store.Tx) error {
		for _, m := range members {
			o, err := orgTable.Get(tx, m.Org)
			if err != nil {
				return err
			}
			if match(o) {
				list = append(list, o)
			}
		}
		return nil
	})
	return list, err
}

// DeleteOrganisation removes an organisation that has nothing left but its
// members; it is a Conflict if it has, or is the default one.
func (s *Service) DeleteOrganisation(ctx context.Context, org string) error {
	return s.DB.Update(ctx, func(tx store.Tx) error {
		f, err := firsts.Get(tx, "first")
		if err != nil && !fault.Is(err, fault.NotFound) {
			return err
		}
		if f.Org == org {
			return fault.New(fault.Conflict, "the default organisation stays")
		}
		if s.InUse != nil {
			switch what, err := s.InUse(tx, org); {
			case err != nil:
				return err
			case what != "":
				return fault.New(fault.Conflict, "the organisation still has %s; delete them first", what)
			}
		}
		if _, err := orgTable.Delete(tx, org); err != nil {
			return err
		}
		members, err := all(tx, memberTable, "org", store.TermOf(org))
		if err != nil {
			return err
		}
		for _, m := range members {
			if err := s.leave(ctx, tx, m); err != nil {
				return err
			}
		}
		keys, err := all(tx, keyTable, "org", store.TermOf(org))
		if err != nil {
			return err
		}
		for _, k := range keys {
			if err := s.dropKey(ctx, tx, k); err != nil {
				return err
			}
		}
		s.moved(tx)
		return s.note(ctx, tx, org, "organisation.delete", org, nil)
	})
}

// leave removes a membership as part of tx.
func (s *Service) leave(ctx context.Context, tx store.Tx, m Member) error {
	if _, err := memberTable.Delete(tx, memberKey(m.Org, m.User)); err != nil {
		return err
	}
	rest, err := memberTable.PageBy(tx, "user", store.TermOf(m.User), page.Request{Limit: 1})
	if err != nil {
		return err
	}
	_, err = userTable.Update(tx, m.User, func(u *User) error {
		if u.HomeOrg == m.Org {
			u.HomeOrg = ""
			if len(rest.Items) > 0 {
				u.HomeOrg = rest.Items[0].Org
			}
		}
		return nil
	})
	if err != nil && !fault.Is(err, fault.NotFound) {
		return err
	}
	s.moved(tx)
	return s.note(ctx, tx, m.Org, "membership.delete", m.User, nil)
}

// MemberOf is a member with its address.
type MemberOf struct {
	Member
	Email string
}

var memberOrders = map[string]func(a, b MemberOf) int{
	"id":         func(a, b MemberOf) int { return strings.Compare(a.User, b.User) },
	"email":      func(a, b MemberOf) int { return strings.Compare(canonical(a.Email), canonical(b.Email)) },
	"created_at": func(a, b MemberOf) int { return a.CreatedAt.Compare(b.CreatedAt) },
}

// Members returns the part that l asks for of an organisation's members.
func (s *Service) Members(ctx context.Context, org, email string, l List) ([]MemberOf, int, error) {
	if memberOrders[l.Order] == nil {
		return nil, 0, fault.New(fault.Invalid, "invalid list order provided: id, email or created_at")
	}
	members, err := collect(ctx, s.DB, memberTable, "org", store.TermOf(org), func(Member) bool { return true })
	if err != nil {
		return nil, 0, err
	}
	var list []MemberOf
	for batch := range slices.Chunk(members, store.MaxScan) {
		err := s.DB.View(ctx, func(tx store.Tx) error {
			for _, m := range batch {
				u, err := userTable.Get(tx, m.User)
				if err != nil {
					return err
				}
				if strings.Contains(canonical(u.Email), canonical(email)) {
					list = append(list, MemberOf{m, u.Email})
				}
			}
			return nil
		})
		if err != nil {
			return nil, 0, err
		}
	}
	list, total := cut(list, l, memberOrders)
	return list, total, nil
}

// MemberOf returns one member of an organisation, or a NotFound fault.
func (s *Service) MemberOf(ctx context.Context, org, userID string) (m MemberOf, err error) {
	err = s.DB.View(ctx, func(tx store.Tx) error {
		if m.Member, err = memberTable.Get(tx, memberKey(org, userID)); err != nil {
			return err
		}
		u, err := userTable.Get(tx, userID)
		m.Email = u.Email
		return err
	})
	return m, err
}

// Grant is a role for the user with an address.
type Grant struct {
	Email string        `json:"email"`
	Role  identity.Role `json:"role"`
}

// check refuses roles that the actor cannot give: nobody gives more than it
// has, and owners are made by owners.
func (g Grant) check(a identity.Actor) error {
	switch g.Role {
	case identity.Viewer, identity.Editor, identity.Admin:
	case identity.Owner:
		if !a.Role.AtLeast(identity.Owner) {
			return fault.New(fault.Forbidden, "only an owner makes another owner")
		}
	default:
		return fault.InvalidFields(fault.Field{Name: "role", Message: "must be viewer, editor, admin or owner"})
	}
	return nil
}

// AddMembers makes users members of an organisation, all or none. It is
// NotFound for an address without an account, Conflict for a member.
func (s *Service) AddMembers(ctx context.Context, org string, grants []Grant) error {
	return s.eachGrant(ctx, grants, func(tx store.Tx, u User, g Grant) error {
		return s.join(ctx, tx, org, u.ID, g.Role)
	})
}

// SetRoles changes the roles of members, all or none.
func (s *Service) SetRoles(ctx context.Context, org string, grants []Grant) error {
	a := identity.FromContext(ctx)
	return s.eachGrant(ctx, grants, func(tx store.Tx, u User, g Grant) error {
		_, err := memberTable.Update(tx, memberKey(org, u.ID), func(m *Member) error {
			if m.Role == identity.Owner && !a.Role.AtLeast(identity.Owner) {
				return fault.New(fault.Forbidden, "only an owner changes an owner's role")
			}
			m.Role, m.UpdatedAt = g.Role, s.Now().UTC()
			return nil
		})
		if err != nil {
			return err
		}
		if err := ownerLeft(tx, org); err != nil {
			return err
		}
		s.moved(tx)
		return s.note(ctx, tx, org, "membership.update", u.ID, map[string]string{"role": string(g.Role), "email": u.Email})
	})
}

func (s *Service) eachGrant(ctx context.Context, grants []Grant, do func(store.Tx, User, Grant) error) error {
	if len(grants) == 0 || len(grants) > 100 {
		return fault.New(fault.Invalid, "empty list provided: name 1 to 100 members")
	}
	a := identity.FromContext(ctx)
	for _, g := range grants {
		if err := g.check(a); err != nil {
			return err
		}
	}
	return s.DB.Update(ctx, func(tx store.Tx) error {
		for _, g := range grants {
			u, err := userTable.GetBy(tx, "email", store.TermOf(canonical(g.Email)))
			if err != nil {
				return err
			}
			if err := do(tx, u, g); err != nil {
				return err
			}
		}
		return nil
	})
}

// RemoveMembers ends memberships, all or none.
func (s *Service) RemoveMembers(ctx context.Context, org string, users []string) error {
	if len(users) == 0 || len(users) > 100 {
		return fault.New(fault.Invalid, "empty list provided: name 1 to 100 members")
	}
	a := identity.FromContext(ctx)
	return s.DB.Update(ctx, func(tx store.Tx) error {
		for _, userID := range users {
			m, err := memberTable.Get(tx, memberKey(org, userID))
			if err != nil {
				return err
			}
			if m.Role == identity.Owner && !a.Role.AtLeast(identity.Owner) {
				return fault.New(fault.Forbidden, "only an owner removes an owner")
			}
			if err := s.leave(ctx, tx, m); err != nil {
				return err
			}
		}
		return ownerLeft(tx, org)
	})
}

func ownerLeft(tx store.Tx, org string) error {
	n, err := memberTable.Count(tx, "owners", store.TermOf(org))
	if err == nil && n == 0 {
		err = fault.New(fault.Conflict, "an organisation keeps at least one owner; make another one first")
	}
	return err
}

// Registration and invites

// Invite lets somebody in: to the server, and to an organisation if it names one.
type Invite struct {
	ID        string        `cbor:"id" json:"id"`
	Email     string        `cbor:"email" json:"email"`
	Org       string        `cbor:"org,omitempty" json:"org_id,omitempty"`
	Role      identity.Role `cbor:"role,omitempty" json:"role,omitempty"`
	Inviter   string        `cbor:"inviter" json:"inviter_id"`
	State     InviteState   `cbor:"state" json:"state"`
	Hash      []byte        `cbor:"hash" json:"-"`
	CreatedAt time.Time     `cbor:"created" json:"created_at"`
	ExpiresAt time.Time     `cbor:"expires" json:"expires_at"`
}

// InviteState is what became of an invite.
type InviteState string

// The states of an invite.
const (
	InvitePending  InviteState = "pending"
	InviteAccepted InviteState = "accepted"
	InviteDeclined InviteState = "declined"
	InviteRevoked  InviteState = "revoked"
	InviteExpired  InviteState = "expired" // shown; not stored
)

var inviteTable = store.NewTable("invite",
	store.Index[Invite]{Name: "org", Terms: func(i Invite) []store.Term { return store.Terms(i.Org) }},
	store.Index[Invite]{Name: "email", Terms: func(i Invite) []store.Term { return store.Terms(canonical(i.Email)) }},
)

const inviteKind = "invite"

// CreateInvite invites the holder of an address, and returns the key in the
// link that was mailed, for the inviter to hand over where no mail is sent.
func (s *Service) CreateInvite(ctx context.Context, email, org string, role identity.Role) (Invite, seal.Secret, error) {
	a := identity.FromContext(ctx)
	if err := checkEmail(email); err != nil {
		return Invite{}, nil, err
	}
	if org != "" {
		if err := (Grant{email, role}).check(a); err != nil {
			return Invite{}, nil, err
		}
	}
	now := s.Now().UTC()
	t := seal.NewTicket(inviteKind, id.New(now))
	i := Invite{
		ID: t.ID, Email: email, Org: org, Role: role, Inviter: a.ID, State: InvitePending, Hash: t.Hash(),
		CreatedAt: now, ExpiresAt: now.Add(s.Config.InviteTTL),
	}
	_, mayMail := s.logins.mail.Take(canonical(email))
	err := s.DB.Update(ctx, func(tx store.Tx) error {
		u, err := userTable.GetBy(tx, "email", store.TermOf(canonical(email)))
		switch {
		case fault.Is(err, fault.NotFound):
		case err != nil:
			return err
		case org == "":
			return fault.New(fault.Conflict, "entity already exists")
		default:
			member, err := memberTable.Has(tx, memberKey(org, u.ID))
			if err != nil {
				return err
			}
			if member {
				return fault.New(fault.Conflict, "the user is a member already")
			}
		}
		if err := inviteTable.Insert(tx, i.ID, i); err != nil {
			return err
		}
		if mayMail {
			err := s.queue(tx, Mail{
				To: email, Subject: "You are invited", Until: i.ExpiresAt,
				Text: "You are invited to administer devices.\n\n" + s.PublicURL + "/invite#" + string(t.Text()) +
					"\n\nThe link works until " + i.ExpiresAt.Format(time.RFC1123) + ".\n",
			})
			if err != nil {
				return err
			}
		}
		detail := map[string]string{"role": string(role)}
		if org != "" {
			detail["email"] = email
		}
		return s.note(ctx, tx, org, "invite.create", i.ID, detail)
	})
	return i, t.Text(), err
}

// Invites returns the invites to an organisation, or to the server for "".
func (s *Service) Invites(ctx context.Context, org string) ([]Invite, error) {
	list, err := collect(ctx, s.DB, inviteTable, "org", store.TermOf(org), func(Invite) bool { return true })
	for i := range list {
		list[i].age(s.Now())
	}
	return list, err
}

func (i *Invite) age(now time.Time) {
	if i.State == InvitePending && !now.Before(i.ExpiresAt) {
		i.State = InviteExpired
	}
}

// AnswerInvite has the acting user, whose address it was sent to, accept or
// decline an invite to an organisation. Anybody else's is NotFound.
func (s *Service) AnswerInvite(ctx context.Context, inviteID string, to InviteState) error {
	a, err := self(ctx)
	if err != nil {
		return err
	}
	return s.DB.Update(ctx, func(tx store.Tx) error {
		u, err := userTable.Get(tx, a.ID)
		if err != nil {
			return err
		}
		i, err := inviteTable.Get(tx, inviteID)
		if err == nil && (u.Email == "" || canonical(i.Email) != canonical(u.Email) || i.Org == "") {
			err = fault.New(fault.NotFound, "no such invite")
		}
		if err != nil {
			return err
		}
		return s.settle(ctx, tx, i, u, to)
	})
}

// settle moves a pending invite on, and makes u a member if it accepts.
func (s *Service) settle(ctx context.Context, tx store.Tx, i Invite, u User, to InviteState) error {
	if i.age(s.Now()); i.State != InvitePending {
		return fault.New(fault.Conflict, "the invite is %s", i.State)
	}
	i.State = to
	if err := inviteTable.Set(tx, i.ID, i); err != nil {
		return err
	}
	if to == InviteAccepted && i.Org != "" {
		if err := s.join(ctx, tx, i.Org, u.ID, i.Role); err != nil {
			return err
		}
	}
	return s.note(ctx, tx, i.Org, "invite."+string(to), i.ID, nil)
}

// RevokeInvite takes an invite to an organisation (or to the server for "") back.
func (s *Service) RevokeInvite(ctx context.Context, org, inviteID string) error {
	return s.DB.Update(ctx, func(tx store.Tx) error {
		i, err := inviteTable.Get(tx, inviteID)
		if err == nil && i.Org != org {
			err = fault.New(fault.NotFound, "no such invite")
		}
		if err != nil {
			return err
		}
		return s.settle(ctx, tx, i, User{}, InviteRevoked)
	})
}

// RegisterInvited makes an account for the holder of an invite's key, at the
// address it was sent to, which is verified thereby.
func (s *Service) RegisterInvited(ctx context.Context, key string, n NewUser, from netip.Addr) (User, error) {
	prefix := throttle.Prefix(from)
	if wait := s.logins.secret.Wait(prefix); wait > 0 {
		return User{}, tooMany(wait)
	}
	bad := fault.New(fault.Forbidden, "the invite is not valid, or has expired")
	t, ok := seal.ParseTicket(key)
	if !ok || t.Kind != inviteKind {
		s.logins.secret.Spend(prefix)
		return User{}, bad
	}
	find := func(tx store.Tx) (Invite, error) {
		i, err := inviteTable.Get(tx, t.ID)
		if fault.Is(err, fault.NotFound) || err == nil && (!t.Matches(i.Hash) || canonical(i.Email) != canonical(n.Email)) {
			return i, bad
		}
		if i.age(s.Now()); err == nil && i.State != InvitePending {
			return i, bad
		}
		return i, err
	}
	err := s.DB.View(ctx, func(tx store.Tx) error { _, err := find(tx); return err })
	if err != nil {
		s.logins.secret.Spend(prefix)
		return User{}, err
	}
	n.Platform, n.Status = false, Enabled
	u, err := s.newUser(ctx, n)
	if err != nil {
		return u, err
	}
	u.Verified = true
	err = s.DB.Update(ctx, func(tx store.Tx) error {
		i, err := find(tx)
		if err != nil {
			return err
		}
		if err := s.insertUser(ctx, tx, u); err != nil {
			return err
		}
		return s.settle(ctx, tx, i, u, InviteAccepted)
	})
	return u, err
}

// Register makes an account for anybody, where that is allowed. Where addresses
// are verified the account waits for the link in the mail, and nothing shows
// whether the address had an account before.
func (s *Service) Register(ctx context.Context, n NewUser, from netip.Addr) error {
	if !s.Config.SelfRegistration {
		return fault.New(fault.Forbidden, "self register disabled: ask an administrator for an invite")
	}
	if wait, ok := s.logins.secret.Take("register\x00" + throttle.Prefix(from)); !ok {
		return tooMany(wait)
	}
	verify := s.Config.VerifyEmail && s.Mail != nil
	n.Platform, n.Status = false, Enabled
	if verify {
		n.Status = Unverified
	}
	if n.Password == "" {
		return fault.InvalidFields(fault.Field{Name: "password", Message: "missing password"})
	}
	u, err := s.newUser(ctx, n)
	if err != nil {
		return err
	}
	t := seal.NewTicket(verifyKind, u.ID)
	_, mayMail := s.logins.mail.Take(canonical(n.Email))
	until := s.Now().UTC().Add(s.Config.VerifyTTL)
	err = s.DB.Update(ctx, func(tx store.Tx) error {
		if err := s.insertUser(ctx, tx, u); err != nil || !verify {
			return err
		}
		if err := verifyTable.Set(tx, u.ID, recovery{Hash: t.Hash(), Expires: until}); err != nil {
			return err
		}
		return s.queue(tx, Mail{
			To: n.Email, Subject: "Verify your address", Until: until, Decoy: !mayMail,
			Text: "Open this link to finish your registration:\n\n" + s.PublicURL + "/verify#" + string(t.Text()) + "\n",
		})
	})
	if !verify || !fault.Is(err, fault.Conflict) {
		return err
	}
	return s.DB.Update(ctx, func(tx store.Tx) error {
		return s.queue(tx, Mail{
			To: n.Email, Subject: "You have an account already", Until: until, Decoy: !mayMail,
			Text: "Somebody, probably you, tried to register with this address, which has an account already.\n\n" + s.PublicURL + "/login\n",
		})
	})
}

var verifyTable = store.NewTable[recovery]("verification key") // by user

const verifyKind = "verify"

// VerifyEmail finishes a registration for the holder of the key that was mailed.
func (s *Service) VerifyEmail(ctx context.Context, key string, from netip.Addr) (User, error) {
	prefix := throttle.Prefix(from)
	if wait := s.logins.secret.Wait(prefix); wait > 0 {
		return User{}, tooMany(wait)
	}
	t, ok := seal.ParseTicket(key)
	if !ok || t.Kind != verifyKind {
		s.logins.secret.Spend(prefix)
		return User{}, ErrUnauthenticated
	}
	var u User
	err := s.DB.Update(ctx, func(tx store.Tx) error {
		x, err := verifyTable.Get(tx, t.ID)
		if fault.Is(err, fault.NotFound) || err == nil && (!t.Matches(x.Hash) || !s.Now().Before(x.Expires)) {
			return ErrUnauthenticated
		}
		if err != nil {
			return err
		}
		if _, err := verifyTable.Delete(tx, t.ID); err != nil {
			return err
		}
		u, err = userTable.Update(tx, t.ID, func(u *User) error {
			u.Verified = true
			if u.Status == Unverified {
				u.Status = Enabled
			}
			return nil
		})
		if err != nil {
			return err
		}
		s.moved(tx)
		return s.note(ctx, tx, "", "user.verify", u.ID, nil)
	})
	return u, err
}
