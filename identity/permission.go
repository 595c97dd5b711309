package identity

import (
	"maps"
	"slices"
)

// Need is what a route asks of its caller: one of the permissions below, or one
// of the words that stand for no permission at all.
type Need string

// Needs that are no permission.
const (
	Public     Need = "public"        // anybody, proven or not
	Proven     Need = "authenticated" // any proven actor, user or device
	DeviceOnly Need = "device"        // a proven device
	UserOnly   Need = "user"          // a proven user, acting on what is its own
)

// The permissions. Each is granted from a role upwards; see Roles.
const (
	DevicesRead  Need = "devices:read"
	DevicesWrite Need = "devices:write"
	DevicesEnd   Need = "devices:delete"

	CredentialsRead   Need = "credentials:read"
	CredentialsWrite  Need = "credentials:write"
	CredentialsReveal Need = "credentials:reveal"

	PKIRead  Need = "pki:read"
	PKIWrite Need = "pki:write"

	BootstrapRead  Need = "bootstrap:read"
	BootstrapWrite Need = "bootstrap:write"

	SessionsRead  Need = "sessions:read"
	SessionsWrite Need = "sessions:write"

	TokensVerify Need = "tokens:verify"
	TokensAdmin  Need = "tokens:admin"

	AccountRead  Need = "account:read" // a user's own profile and API keys
	AccountWrite Need = "account:write"

	AuditRead Need = "audit:read"
	OrgRead   Need = "org:read"
	OrgAdmin  Need = "org:admin"
	OrgOwn    Need = "org:own"        // delete the organisation
	Platform  Need = "platform:admin" // across organisations: backups, organisations, platform settings
)

// Role is what a user is in an organisation.
type Role string

// The roles, each with all that the one before may do.
const (
	NoRole   Role = ""
	Viewer   Role = "viewer"
	Editor   Role = "editor"
	Admin    Role = "admin"
	Owner    Role = "owner"
	Operator Role = "platform" // a platform administrator, in whatever organisation it acts
)

// Roles lists the roles from the least to the most.
var Roles = []Role{NoRole, Viewer, Editor, Admin, Owner, Operator}

// granted says from which role on a permission is held. A permission that is
// not in it nobody holds.
var granted = map[Need]Role{
	DevicesRead:       Viewer,
	DevicesWrite:      Editor,
	DevicesEnd:        Admin,
	CredentialsRead:   Viewer,
	CredentialsWrite:  Editor,
	CredentialsReveal: Admin,
	PKIRead:           Viewer,
	PKIWrite:          Admin,
	BootstrapRead:     Viewer,
	BootstrapWrite:    Editor,
	SessionsRead:      Viewer,
	SessionsWrite:     Editor,
	TokensVerify:      Viewer,
	TokensAdmin:       Admin,
	AccountRead:       NoRole, // any user, of an organisation or of none
	AccountWrite:      NoRole,
	AuditRead:         Admin,
	OrgRead:           Viewer,
	OrgAdmin:          Admin,
	OrgOwn:            Owner,
	Platform:          Operator,
}

// Permissions returns every permission, in the order of their names, for scopes
// and documentation.
func Permissions() []Need { return slices.Sorted(maps.Keys(granted)) }

// allows reports whether r holds the permission need.
func (r Role) allows(need Need) bool {
	from, ok := granted[need]
	return ok && r.rank() >= from.rank()
}

// AtLeast reports whether r may do all that other may.
func (r Role) AtLeast(other Role) bool { return r.rank() >= other.rank() }

func (r Role) rank() int {
	for i, role := range Roles {
		if role == r {
			return i
		}
	}
	return 0
}
