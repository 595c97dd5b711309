// Package server assembles the product and serves its HTTP side: the REST API,
// EST and the device APIs over HTTPS, CRLs and OCSP over plain HTTP, and
// operations on loopback.
//
// A request goes one way: listener, middleware (request id, recover, log,
// limits), authenticate (proof to actor), authorise (the route's need), handler,
// one service method, view. Errors come back the same way to one function that
// turns them into answers.
package server

import (
	"log/slog"
	"net/http"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/labstack/echo/v4"

	"keystead/accesskeys"
	"keystead/accounts"
	"keystead/argon"
	"keystead/audit"
	"keystead/authsets"
	"keystead/coapgw"
	"keystead/config"
	"keystead/devices"
	"keystead/est"
	"keystead/events"
	"keystead/identity"
	"keystead/lwm2m"
	"keystead/mail"
	"keystead/messages"
	"keystead/pki"
	"keystead/psk"
	"keystead/seal"
	"keystead/store"
	"keystead/store/bolt"
	"keystead/thingkeys"
	"keystead/tokens"
)

// Server is the assembled product. Its fields are the rooms it is made of; see
// Build for how they are filled.
type Server struct {
	Version    string // of the program
	Config     config.Config
	Log        *slog.Logger
	Now        func() time.Time
	DB         store.Engine
	Audit      *audit.Log
	Devices    *devices.Service
	Accounts   *accounts.Service
	CoAP       *coapgw.Gateway
	AccessKeys *accesskeys.Service
	PKI        *pki.Service
	EST        *est.Service
	PSK        *psk.Service
	LwM2M      *lwm2m.Service
	Things     *thingkeys.Service
	Events     *events.Service
	Tokens     *tokens.Service
	Issuers    *tokens.Issuers
	Messages   *messages.Service
	Mail       *mail.Service // nil where no mail server is configured
	AuthSets   *authsets.Service
	Resolver   identity.Resolver // the methods of every credential, the same on every listener

	// ClientAddr says where a request comes from; forwarded addresses count
	// from trusted proxies only.
	ClientAddr func(*http.Request) netip.Addr

	bolt       *bolt.Engine // what DB is, or lies over
	metrics    metrics
	limits     limits
	rolledBack atomic.Bool   // the audit trail does not reach its last checkpoint
	backingUp  sync.Mutex    // held while one is made
	lastBackup atomic.Int64  // in seconds since 1970
	keys       *seal.Keyring // of everything sealed at rest, a box per class
	box        *seal.Box     // of the server's own secrets
	tls        tlsIdentity
	swapTLS    func() error // takes a certificate from elsewhere anew, if its files have changed
	listeners  []listener
	closers    []func() error // of what rooms hold open, closed before the store
	tasks      []task
	conns      conns
	providers  map[string]*outsideLogin // by name
	forward    *forward                 // nil if nothing is behind this server
	ready      atomic.Bool
}

// route is one operation of the API. The whole surface is in tables of these:
// what each needs of its caller stands next to its path, and is never optional.
type route struct {
	method, path string
	need         identity.Need
	handle       echo.HandlerFunc
	org          string // the parameter of the path that names the organisation to act in; "" where X-Org-ID does
	body         int64  // most bytes of the request's body; 0 for limits.body
	stream       bool   // takes or gives more than the time limits allow; sets its own

	// wire writes error answers where a published API has a form of its own for
	// them; nil for that of this server.
	wire func(c echo.Context, status int, p problem) error
}

// routes is the surface of the HTTPS listener, a table per resource.
func (s *Server) routes() []route {
	var all []route
	for _, table := range [][]route{
		s.whoamiRoutes(),
		s.deviceRoutes(),
		s.sessionRoutes(),
		s.entryRoutes(),
		s.oauthRoutes(),
		s.accessKeyRoutes(),
		s.identityRoutes(),
		s.creatorCertificateRoutes(),
		s.registeredRoutes(),
		s.subscriptionRoutes(),
		s.lwm2mRoutes(),
		s.pskRoutes(),
		s.tokenRoutes(),
		s.issuerRoutes(),
		s.messageRoutes(),
		s.authRequestRoutes(),
		s.forwardRoutes(),
		s.devauthRoutes(),
		s.authSetRoutes(),
		s.introspectRoutes(),
		s.webhookRoutes(),
		s.keyRoutes(),
		s.userRoutes(),
		s.passkeyRoutes(),
		s.accountPageRoutes(),
		s.orgRoutes(),
		s.thingRoutes(),
		s.authorizeRoutes(),
		s.providerRoutes(),
		s.auditRoutes(),
		s.backupRoutes(),
		s.caRoutes(),
		s.dataKeyRoutes(),
		s.certificateRoutes(),
		s.profileRoutes(),
		s.dmsRoutes(),
		s.enrolmentTokenRoutes(),
		s.estRoutes(),
		s.docRoutes(),
		s.browserRoutes(),
		s.consoleRoutes(),
	} {
		all = append(all, table...)
	}
	return all
}

// Routes lists every operation of the HTTPS listener as "METHOD /path", with
// what it needs, for tests that walk the whole surface.
func (s *Server) Routes() map[string]identity.Need {
	list := map[string]identity.Need{}
	for _, r := range s.routes() {
		list[r.method+" "+r.path] = r.need
	}
	return list
}

// PlainHandler returns what the plain HTTP listener serves: what is public and
// signed, or needed before a client can trust anything.
func (s *Server) PlainHandler() http.Handler { return s.mount(s.publicPKIRoutes()) }

// OpsHandler returns what the operations listener serves.
func (s *Server) OpsHandler() http.Handler {
	return s.mount(s.opsRoutes())
}

// HashElsewhere has passwords hashed in processes that run command, which is this
// program with [argon.Serve] to do. Call it before Run.
func (s *Server) HashElsewhere(command ...string) {
	pool := &argon.Pool{Command: command, Idle: time.Minute, Log: s.Log}
	s.Accounts.HashWith(pool.IDKey)
	s.closers = append(s.closers, pool.Close)
}

// Handler returns what the HTTPS listener serves.
func (s *Server) Handler() http.Handler {
	return s.mount(s.routes(), s.asMender, s.passedOn, s.throttled)
}

func (s *Server) mount(routes []route, more ...echo.MiddlewareFunc) http.Handler {
	e := echo.New()
	e.HTTPErrorHandler = s.fail
	e.IPExtractor = func(r *http.Request) string { return s.ClientAddr(r).String() }
	// Put together here: echo would wrap the handler anew for every request.
	all := echo.HandlerFunc(func(c echo.Context) error { return c.Handler()(c) })
	for _, m := range slices.Backward(append([]echo.MiddlewareFunc{s.measured(routes), s.requestID, s.recovered, s.logged}, more...)) {
		all = m(all)
	}
	e.Use(func(echo.HandlerFunc) echo.HandlerFunc { return all }) // for what is no route, too
	for _, r := range routes {
		e.Add(r.method, r.path, s.worded(r)(s.limited(r)(s.authenticated(r)(s.authorised(r)(r.handle)))))
	}
	return e
}
