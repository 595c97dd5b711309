package config_test

import (
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"keystead/config"
)

// file writes text to a configuration file and returns its path.
func file(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "keystead.yaml")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func env(vars map[string]string) func(string) string {
	return func(name string) string { return vars[name] }
}

func settingsOf(c config.Config) map[string]config.Setting {
	all := map[string]config.Setting{}
	for _, s := range c.Settings() {
		all[s.Key] = s
	}
	return all
}

func TestDefaultsAreValid(t *testing.T) {
	if err := config.Default().Validate(); err != nil {
		t.Error(err)
	}
	c, err := config.Load(config.Options{Getenv: env(nil)})
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range c.Settings() {
		if s.Origin != config.FromDefault {
			t.Errorf("%s: got origin %s, want %s", s.Key, s.Origin, config.FromDefault)
		}
	}
	if got, want := c.Settings(), config.Default().Settings(); !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

// The file at the root is the reference: every key is in it, with its default,
// and above each there is a comment, on it or on the group it is in.
func TestReferenceFile(t *testing.T) {
	path := filepath.Join("..", "config.yaml")
	c, err := config.Load(config.Options{File: path, Getenv: env(nil)})
	if err != nil {
		t.Fatal(err)
	}
	want := settingsOf(config.Default())
	for _, s := range c.Settings() {
		if s.Origin != config.Origin(path) {
			t.Errorf("%s is not in config.yaml", s.Key)
		}
		if s.Value != want[s.Key].Value {
			t.Errorf("%s: config.yaml has %q, the default is %q", s.Key, s.Value, want[s.Key].Value)
		}
	}
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(string(text), "\n")
	for i, line := range lines {
		if strings.HasPrefix(line, "#") || strings.TrimSpace(line) == "" || strings.HasSuffix(line, ":") {
			continue
		}
		explained := false
		for j := i - 1; j >= 0 && strings.TrimSpace(lines[j]) != "" && !explained; j-- {
			explained = strings.HasPrefix(strings.TrimSpace(lines[j]), "#")
		}
		if !explained && !strings.HasPrefix(strings.TrimSpace(line), "#") {
			t.Errorf("config.yaml:%d: %q has no comment above it", i+1, line)
		}
	}
}

func TestEachSourceOverridesTheOneBefore(t *testing.T) {
	path := file(t, "https: {listen: '127.0.0.1:1'}\nhttp: {listen: '127.0.0.1:1'}\nops: {listen: '127.0.0.1:1'}\n")
	c, err := config.Load(config.Options{
		File:   path,
		Getenv: env(map[string]string{"KEYSTEAD_HTTP_LISTEN": "127.0.0.1:2", "KEYSTEAD_OPS_LISTEN": "127.0.0.1:2"}),
		Set:    []string{"ops.listen=127.0.0.1:3"},
	})
	if err != nil {
		t.Fatal(err)
	}
	got := settingsOf(c)
	for _, want := range []config.Setting{
		{Key: "data", Value: "data", Origin: config.FromDefault},
		{Key: "https.listen", Value: "127.0.0.1:1", Origin: config.Origin(path)},
		{Key: "http.listen", Value: "127.0.0.1:2", Origin: "KEYSTEAD_HTTP_LISTEN"},
		{Key: "ops.listen", Value: "127.0.0.1:3", Origin: "--set"},
	} {
		if got[want.Key] != want {
			t.Errorf("got %+v, want %+v", got[want.Key], want)
		}
	}
	if c.Ops.Listen != "127.0.0.1:3" {
		t.Errorf("got ops.listen %q, want 127.0.0.1:3", c.Ops.Listen)
	}
}

func TestValuesOfEveryForm(t *testing.T) {
	for _, test := range []struct {
		key, text string
		get       func(config.Config) any
		want      any
	}{
		{"timeouts.read", "1m30s", func(c config.Config) any { return c.Timeouts.Read }, 90 * time.Second},
		{"audit.keep", "0", func(c config.Config) any { return c.Audit.Keep }, time.Duration(0)},
		{"limits.body", "64KiB", func(c config.Config) any { return c.Limits.Body }, config.Size(64 << 10)},
		{"limits.body", "70000", func(c config.Config) any { return c.Limits.Body }, config.Size(70000)},
		{"limits.connections", "12", func(c config.Config) any { return c.Limits.Connections }, 12},
		{"limits.failures.per_second", "0.5", func(c config.Config) any { return c.Limits.Failures.PerSecond }, 0.5},
		{"tls.names", "a.example, 10.0.0.1", func(c config.Config) any { return c.TLS.Names }, []string{"a.example", "10.0.0.1"}},
		{"trusted_proxies", "", func(c config.Config) any { return c.TrustedProxies }, []string{}},
		{"https.listen", "", func(c config.Config) any { return c.HTTPS.Listen }, ""},
		{"TLS.Min_Version", "1.3", func(c config.Config) any { return c.TLS.MinVersion }, "1.3"},
	} {
		t.Run(test.key+"="+test.text, func(t *testing.T) {
			c, err := config.Load(config.Options{Getenv: env(nil), Set: []string{test.key + "=" + test.text}})
			if err != nil {
				t.Fatal(err)
			}
			if got := test.get(c); !reflect.DeepEqual(got, test.want) {
				t.Errorf("got %#v, want %#v", got, test.want)
			}
		})
	}
	c, err := config.Load(config.Options{Getenv: env(nil), File: file(t, "timeouts: {read: 20s}\nlimits: {body: 2MiB, connections: 7}\ntls: {names: [x.example]}\nhttps:\n")})
	if err != nil {
		t.Fatal(err)
	}
	if c.Timeouts.Read != 20*time.Second || c.Limits.Body != 2<<20 || c.Limits.Connections != 7 || !slices.Equal(c.TLS.Names, []string{"x.example"}) {
		t.Errorf("from a file: got %+v", c)
	}
}

func TestFaults(t *testing.T) {
	for _, test := range []struct {
		name, yaml string
		set        []string
		env        map[string]string
		want       []string // each in a line of the error
	}{
		{name: "unknown key", yaml: "https: {lsten: a}", want: []string{"https.lsten: there is no such key", "did you mean https.listen?"}},
		{name: "key without its section", yaml: "max_size: 1GiB", want: []string{"did you mean store.max_size?"}},
		{name: "key like no other", yaml: "zzzzzzzz: 1", want: []string{"zzzzzzzz: there is no such key"}},
		{name: "section with a value", yaml: "https: 8443", want: []string{"https: is a section", "listen"}},
		{name: "key without a value", yaml: "https:\n  listen:\n", want: []string{"https.listen: has no value"}},
		{name: "key twice", yaml: "data: a\ndata: b", want: []string{"already defined"}},
		{name: "not YAML", yaml: "data: [", want: []string{"keystead.yaml"}},
		{name: "duration without unit", yaml: "timeouts: {read: 20}", want: []string{"timeouts.read: 20 has no unit; write 20s"}},
		{name: "no duration", yaml: "timeouts: {read: soon}", want: []string{`timeouts.read: "soon" is not a duration`}},
		{name: "list for a word", yaml: "data: [a, b]", want: []string{"data: is one value, not a list"}},
		{name: "map for a word", yaml: "data: {a: b}", want: []string{"data.a: there is no such key"}},
		{name: "truth for a word", yaml: "data: yes", want: nil},
		{name: "true for a number", yaml: "limits: {connections: true}", want: []string{"limits.connections: true is not a whole number"}},
		{name: "no number in the environment", env: map[string]string{"KEYSTEAD_LIMITS_CONNECTIONS": "many"}, want: []string{`limits.connections: "many" is not a whole number (KEYSTEAD_LIMITS_CONNECTIONS)`}},
		{name: "no size", set: []string{"store.max_size=9EiB"}, want: []string{`store.max_size: "9EiB" is not a size`}},
		{name: "size out of range", set: []string{"store.max_size=9223372036854775807KiB"}, want: []string{"is not a size"}},
		{name: "unknown key on the command line", set: []string{"http.lisen=:1"}, want: []string{"http.lisen: there is no such key (--set); did you mean http.listen?"}},
		{name: "no key=value", set: []string{"http.listen"}, want: []string{"is not key=value"}},
		{name: "address", set: []string{"https.listen=8443"}, want: []string{`https.listen: "8443" is not host:port`}},
		{name: "port", set: []string{"coap.udp=:70000"}, want: []string{"coap.udp: the port of"}},
		{name: "public_url", set: []string{"public_url=http://a/b"}, want: []string{"public_url:"}},
		{name: "proxy", set: []string{"trusted_proxies=10.0.0.0/33,nobody"}, want: []string{`"10.0.0.0/33"`, `"nobody"`}},
		{name: "certificates of nobody", set: []string{"forwarded_certificates=Client-Cert"}, want: []string{"forwarded_certificates: needs trusted_proxies"}},
		{name: "certificates of anybody", set: []string{"forwarded_certificates=Client-Cert", "trusted_proxies=::/0"}, want: []string{"forwarded_certificates: trusted_proxies has ::/0"}},
		{name: "certificates of another header", set: []string{"forwarded_certificates=X-Cert", "trusted_proxies=10.0.0.1"}, want: []string{`forwarded_certificates: "X-Cert" is not one of X-Forwarded-Client-Cert`}},
		{name: "certificate without key", set: []string{"tls.certificate=a.pem"}, want: []string{"tls.certificate:"}},
		{name: "word not in the list", set: []string{"log.level=loud"}, want: []string{`log.level: "loud" is not one of debug, info, warn, error`}},
		{name: "section of a section", set: []string{"limits.per_address.per_second=-1"}, want: []string{"limits.per_address.per_second: -1 is less than 0"}},
		{name: "master key", set: []string{"master_key.source=stone"}, want: []string{"master_key.source:"}},
		{
			name: "all at once", yaml: "http: {lsten: a}\ntimeouts: {drain: -1s}\nlimits: {body: huge}\nlog: {level: loud}\ndata: ''",
			want: []string{"http.lsten", "timeouts.drain", "limits.body", "log.level", "data: must name"},
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			o := config.Options{Getenv: env(test.env), Set: test.set}
			if test.yaml != "" {
				o.File = file(t, test.yaml)
			}
			_, err := config.Load(o)
			if test.want == nil {
				if err != nil {
					t.Errorf("got %v, want no error", err)
				}
				return
			}
			if err == nil {
				t.Fatal("got no error")
			}
			for _, want := range test.want {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("got %q, want %q in it", err, want)
				}
			}
		})
	}
}

func TestMissingFile(t *testing.T) {
	_, err := config.Load(config.Options{File: filepath.Join(t.TempDir(), "none.yaml")})
	if err == nil || !strings.Contains(err.Error(), "there is no such file") {
		t.Errorf("got %v, want that there is no such file", err)
	}
}

func TestSizeReadsWhatItWrites(t *testing.T) {
	for _, n := range []config.Size{0, 1, 1023, 1 << 10, 1536, 64 << 10, 1 << 20, 3 << 30, 1<<30 + 1} {
		var got config.Size
		if err := got.UnmarshalText([]byte(n.String())); err != nil || got != n {
			t.Errorf("%v: got %v, %v", n, got, err)
		}
	}
}

func FuzzLoad(f *testing.F) {
	f.Add("https: {listen: ':1'}")
	f.Add("limits: {per_address: {burst: 1e3}}")
	f.Add("a: &a [*a]")
	f.Add("tls: {names: [1, true, {}]}")
	f.Fuzz(func(t *testing.T, text string) {
		c, err := config.Load(config.Options{File: file(t, text), Getenv: env(nil)})
		if err != nil {
			return
		}
		if err := c.Validate(); err != nil {
			t.Errorf("%q was loaded and is not valid: %v", text, err)
		}
	})
}
