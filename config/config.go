// Package config reads the configuration: the defaults, a file, the environment
// and the command line, each over the one before. It is the one place that knows
// viper, and it remembers where each value came from.
//
// A room with settings of its own has a Config struct with mapstructure tags and
// a Validate method; it becomes a section by one field of [Config] and one line
// of [Default]. No setting is a map with names the operator chooses: keys of the
// file are not case-sensitive. Such things are lists of {name, ...}.
package config

import (
	"errors"
	"fmt"
	"net/netip"
	"net/url"
	"path/filepath"
	"time"

	"keystead/accounts"
	"keystead/authsets"
	"keystead/coapgw"
	"keystead/est"
	"keystead/lwm2m"
	"keystead/mail"
	"keystead/messages/sink"
	"keystead/outbound"
	"keystead/pki"
	"keystead/seal"
	"keystead/tokens"
)

// Config is the whole configuration.
type Config struct {
	Data           string   `mapstructure:"data"`
	PublicURL      string   `mapstructure:"public_url"`
	TrustedProxies []string `mapstructure:"trusted_proxies"`

	ForwardedCertificates string `mapstructure:"forwarded_certificates"`

	HTTPS     Listener    `mapstructure:"https"`
	HTTP      Listener    `mapstructure:"http"`
	CoAP      CoAP        `mapstructure:"coap"`
	Ops       Listener    `mapstructure:"ops"`
	TLS       TLS         `mapstructure:"tls"`
	MTLS      MTLS        `mapstructure:"mtls"`
	PKI       pki.Config  `mapstructure:"pki"`
	EST       est.Config  `mapstructure:"est"`
	Timeouts  Timeouts    `mapstructure:"timeouts"`
	Limits    Limits      `mapstructure:"limits"`
	MasterKey seal.Source `mapstructure:"master_key"`
	Store     Store       `mapstructure:"store"`
	Audit     Audit       `mapstructure:"audit"`
	Backup    Backup      `mapstructure:"backup"`
	Log       Log         `mapstructure:"log"`
	Console   Console     `mapstructure:"console"`

	Webhook  outbound.Config `mapstructure:"webhook"`
	Tokens   tokens.Config   `mapstructure:"tokens"`
	Messages Messages        `mapstructure:"messages"`
	Accounts accounts.Config `mapstructure:"accounts"`
	Mail     mail.Config     `mapstructure:"mail"`

	AuthSets authsets.Config `mapstructure:"authsets"`
	Forward  Forward         `mapstructure:"forward"`
	LwM2M    LwM2M           `mapstructure:"lwm2m"`

	origins map[string]Origin
}

// Default is the configuration that an empty file gives.
func Default() Config {
	return Config{
		Data: "data", PublicURL: "https://localhost:8443",
		HTTPS: Listener{Listen: ":8443"},
		HTTP:  Listener{Listen: ":8080"},
		CoAP:  CoAP{coapgw.DefaultConfig()},
		Ops:   Listener{Listen: "127.0.0.1:9464"},
		TLS:   TLS{Names: []string{"localhost", "127.0.0.1", "::1"}, MinVersion: "1.2"},
		Timeouts: Timeouts{
			Header: 5 * time.Second, Read: 15 * time.Second, Write: 30 * time.Second, Idle: time.Minute, Drain: 5 * time.Second,
		},
		Limits: Limits{
			Body: 1 << 20, Header: 16 << 10, Connections: 10_000, ConnectionsPerAddress: 256,
			PerAddress: Rate{PerSecond: 200, Burst: 1000}, PerCredential: Rate{PerSecond: 100, Burst: 500}, Failures: Rate{PerSecond: 1.0 / 3, Burst: 20},
			Tracked: 100_000,
		},
		PKI:       pki.DefaultConfig(),
		EST:       est.DefaultConfig(),
		MasterKey: seal.DefaultSource(),
		Audit:     Audit{CheckpointEvery: 1000, CheckpointInterval: time.Hour, FailuresPerMinute: 20},
		Backup:    Backup{Keep: 7},
		Log:       Log{Level: "info", Format: "auto"},
		Console:   Console{Enabled: true},
		Tokens:    tokens.DefaultConfig(),
		Accounts:  accounts.DefaultConfig(),
		Mail:      mail.DefaultConfig(),
		Messages:  Messages{Sinks: []sink.Config{}, Rate: Rate{PerSecond: 10, Burst: 100}, MaxWaiting: 100_000},
		AuthSets:  authsets.DefaultConfig(),
		Forward:   Forward{Timeout: 30 * time.Second, MaxBody: 16 << 20},
		LwM2M:     LwM2M{lwm2m.DefaultConfig()},
	}
}

// Validate reports everything that is wrong with c, each fault under the path of
// its key.
func (c Config) Validate() error {
	return errors.Join(
		check(c.Data != "", "data: must name a directory"),
		checkURL("public_url", c.PublicURL),
		checkPrefixes("trusted_proxies", c.TrustedProxies),
		c.checkForwarded(),
		sections(c),
	)
}

// The headers in which proxies pass on the certificate of their client: Envoy's,
// those usual with nginx, that of Amazon's load balancer, and RFC 9440's.
const (
	EnvoyCertificate      = "X-Forwarded-Client-Cert"
	NginxCertificate      = "SSL-Client-Cert"
	NginxOtherCertificate = "X-SSL-Client-Cert"
	AmazonCertificate     = "X-Amzn-Mtls-Clientcert"
	StandardCertificate   = "Client-Cert"
)

// checkForwarded refuses to believe certificates from everybody.
func (c Config) checkForwarded() error {
	const key = "forwarded_certificates"
	if c.ForwardedCertificates == "" {
		return nil
	}
	if len(c.Proxies()) == 0 {
		return fmt.Errorf("%s: needs trusted_proxies, which say from whom certificates are believed", key)
	}
	for _, p := range c.Proxies() {
		if p.Bits() == 0 {
			return fmt.Errorf("%s: trusted_proxies has %s, from where anybody could claim any certificate; name the proxies", key, p)
		}
	}
	return oneOf(key, c.ForwardedCertificates, EnvoyCertificate, NginxCertificate, NginxOtherCertificate, AmazonCertificate, StandardCertificate)
}

// Path returns name as a path in the data directory, unless it is absolute.
func (c Config) Path(name string) string {
	if filepath.IsAbs(name) {
		return name
	}
	return filepath.Join(c.Data, name)
}

// Proxies returns the addresses whose forwarding headers count.
func (c Config) Proxies() []netip.Prefix {
	var all []netip.Prefix
	for _, text := range c.TrustedProxies {
		if p, err := parsePrefix(text); err == nil {
			all = append(all, p)
		}
	}
	return all
}

// Listener is where one HTTP listener is bound.
type Listener struct {
	Listen string `mapstructure:"listen"`
}

// Validate reports what is wrong with l.
func (l Listener) Validate() error { return checkAddr("listen", l.Listen) }

// CoAP is the CoAP gateway.
type CoAP struct {
	coapgw.Config `mapstructure:",squash"`
}

// Validate reports what is wrong with c.
func (c CoAP) Validate() error {
	return errors.Join(checkAddr("udp", c.UDP), checkAddr("tcp", c.TCP), c.Config.Validate())
}

// LwM2M is bootstrap and registration.
type LwM2M struct {
	lwm2m.Config `mapstructure:",squash"`
}

// Validate reports what is wrong with c.
func (c LwM2M) Validate() error { return errors.Join(checkAddr("udp", c.UDP), c.Config.Validate()) }

// TLS is about the server's own certificate.
type TLS struct {
	Names       []string `mapstructure:"names"`
	Certificate string   `mapstructure:"certificate"`
	Key         string   `mapstructure:"key"`
	MinVersion  string   `mapstructure:"min_version"`
}

// Validate reports what is wrong with t.
func (t TLS) Validate() error {
	return errors.Join(
		check(len(t.Names) > 0 || t.Certificate != "", "names: must have one name or address, that of this server"),
		checkNames("names", t.Names),
		check((t.Certificate == "") == (t.Key == ""), "certificate: is set together with key, or neither is"),
		oneOf("min_version", t.MinVersion, "1.2", "1.3"),
	)
}

// MTLS is what client certificates prove besides those of the inventory.
type MTLS struct {
	CNThingKey     bool `mapstructure:"cn_thing_key"`
	CNThingKeyDTLS bool `mapstructure:"cn_thing_key_dtls"`
}

// Validate reports what is wrong with m.
func (m MTLS) Validate() error {
	return check(m.CNThingKey || !m.CNThingKeyDTLS, "cn_thing_key_dtls: does nothing without cn_thing_key; set both")
}

// Split returns the names that are DNS names, and those that are addresses.
func (t TLS) Split() (dns []string, ips []netip.Addr) {
	for _, name := range t.Names {
		if ip, err := netip.ParseAddr(name); err == nil {
			ips = append(ips, ip)
		} else {
			dns = append(dns, name)
		}
	}
	return dns, ips
}

// Timeouts are the limits on time of HTTP connections, in the order a slow client
// meets them, and of the end.
type Timeouts struct {
	Header time.Duration `mapstructure:"header"`
	Read   time.Duration `mapstructure:"read"`
	Write  time.Duration `mapstructure:"write"`
	Idle   time.Duration `mapstructure:"idle"`
	Drain  time.Duration `mapstructure:"drain"`
}

// Validate reports what is wrong with t.
func (t Timeouts) Validate() error {
	return errors.Join(
		atLeast("header", t.Header, time.Millisecond),
		atLeast("read", t.Read, t.Header),
		atLeast("write", t.Write, time.Millisecond),
		atLeast("idle", t.Idle, time.Millisecond),
		atLeast("drain", t.Drain, 0),
	)
}

// Limits are the limits on what clients may send, and how often.
type Limits struct {
	Body                  Size `mapstructure:"body"`
	Header                Size `mapstructure:"header"`
	Connections           int  `mapstructure:"connections"`
	ConnectionsPerAddress int  `mapstructure:"connections_per_address"`
	PerAddress            Rate `mapstructure:"per_address"`
	PerCredential         Rate `mapstructure:"per_credential"`
	Failures              Rate `mapstructure:"failures"`
	Tracked               int  `mapstructure:"tracked"`
}

// Validate reports what is wrong with l.
func (l Limits) Validate() error {
	return errors.Join(
		atLeast("body", l.Body, 1<<10),
		atLeast("header", l.Header, 1<<10),
		atLeast("connections", l.Connections, 1),
		atLeast("connections_per_address", l.ConnectionsPerAddress, 1),
		under("per_address", l.PerAddress.Validate()),
		under("per_credential", l.PerCredential.Validate()),
		under("failures", l.Failures.Validate()),
		atLeast("tracked", l.Tracked, 1000),
	)
}

// Rate is how often something may happen: Burst times at once, and PerSecond
// times a second in the long run. A PerSecond of 0 is no limit.
type Rate struct {
	PerSecond float64 `mapstructure:"per_second"`
	Burst     int     `mapstructure:"burst"`
}

// Validate reports what is wrong with r.
func (r Rate) Validate() error {
	return errors.Join(
		check(r.PerSecond >= 0, "per_second: %v is less than 0; 0 is no limit", r.PerSecond),
		check(r.PerSecond == 0 || r.Burst >= 1, "burst: %d lets nothing through; the least is 1", r.Burst),
	)
}

// Store is about the database.
type Store struct {
	MaxSize Size `mapstructure:"max_size"`
}

// Validate reports what is wrong with s.
func (s Store) Validate() error {
	return check(s.MaxSize == 0 || s.MaxSize >= 1<<20, "max_size: %v is too small to work in; the least is 1MiB, 0 is no limit", s.MaxSize)
}

// Audit is about the trail of what was changed.
type Audit struct {
	Keep               time.Duration `mapstructure:"keep"`
	CheckpointEvery    int           `mapstructure:"checkpoint_every"`
	CheckpointInterval time.Duration `mapstructure:"checkpoint_interval"`
	FailuresPerMinute  int           `mapstructure:"failures_per_minute"`
}

// Validate reports what is wrong with a.
func (a Audit) Validate() error {
	return errors.Join(
		check(a.Keep == 0 || a.Keep >= 24*time.Hour, "keep: %v is shorter than a day (24h); 0 keeps the trail for ever", a.Keep),
		atLeast("checkpoint_every", a.CheckpointEvery, 1),
		atLeast("checkpoint_interval", a.CheckpointInterval, time.Second),
		atLeast("failures_per_minute", a.FailuresPerMinute, 1),
	)
}

// Backup is about the copies the server makes by itself.
type Backup struct {
	Every time.Duration `mapstructure:"every"`
	Dir   string        `mapstructure:"dir"`
	Keep  int           `mapstructure:"keep"`
}

// Validate reports what is wrong with b.
func (b Backup) Validate() error {
	return errors.Join(
		check(b.Every == 0 || b.Every >= time.Minute, "every: %v is shorter than a minute (1m); 0 makes none", b.Every),
		atLeast("keep", b.Keep, 1),
	)
}

// Log is about what the server writes to its standard error.
type Log struct {
	Level  string `mapstructure:"level"`
	Format string `mapstructure:"format"`
}

// Validate reports what is wrong with l.
func (l Log) Validate() error {
	return errors.Join(
		oneOf("level", l.Level, "debug", "info", "warn", "error"),
		oneOf("format", l.Format, "auto", "json", "text"),
	)
}

// Console is about the pages for people who administer.
type Console struct {
	Enabled bool `mapstructure:"enabled"`
}

// Validate reports what is wrong with c.
func (Console) Validate() error { return nil }

// Messages is about what devices have to say.
type Messages struct {
	Sinks      []sink.Config `mapstructure:"sinks"`
	Rate       Rate          `mapstructure:"rate"` // of each device
	MaxWaiting int           `mapstructure:"max_waiting"`
}

// Validate reports what is wrong with m.
func (m Messages) Validate() error {
	faults := []error{
		under("rate", m.Rate.Validate()),
		atLeast("max_waiting", m.MaxWaiting, 1),
	}
	names := map[string]bool{}
	for i, s := range m.Sinks {
		faults = append(faults, under(fmt.Sprintf("sinks[%d]", i), s.Validate()))
		if names[s.Name] {
			faults = append(faults, fmt.Errorf("sinks[%d].name: %q is there twice", i, s.Name))
		}
		names[s.Name] = true
	}
	return errors.Join(faults...)
}

// Forward is about requests of devices that another server answers.
type Forward struct {
	Upstream          string        `mapstructure:"upstream"`
	CAFile            string        `mapstructure:"ca_file"`
	PassAuthorization bool          `mapstructure:"pass_authorization"`
	Timeout           time.Duration `mapstructure:"timeout"`
	MaxBody           Size          `mapstructure:"max_body"`
	WebSockets        bool          `mapstructure:"websockets"`
}

// Validate reports what is wrong with f.
func (f Forward) Validate() error {
	u, err := url.Parse(f.Upstream)
	return errors.Join(
		check(f.Upstream == "" || err == nil && (u.Scheme == "https" || u.Scheme == "http") && u.Host != "" && u.User == nil && u.RawQuery == "" && u.Fragment == "",
			"upstream: must be written https://host/path, without a user or a query; empty is off"),
		atLeast("timeout", f.Timeout, time.Millisecond),
		atLeast("max_body", f.MaxBody, 1<<10),
	)
}
