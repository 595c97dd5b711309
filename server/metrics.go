package server

import (
	"context"
	"net/http"
	"runtime"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/labstack/echo/v4"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"keystead/pki"
	"keystead/store/bolt"
)

// metrics are what the server counts. No label holds what a client chose.
type metrics struct {
	registry *prometheus.Registry
	requests *prometheus.CounterVec   // by route, method and status
	took     *prometheus.HistogramVec // by route
	failures *prometheus.CounterVec   // proofs that failed, by surface and kind
	limited  *prometheus.CounterVec   // requests and connections refused, by limit
	panics   *prometheus.CounterVec   // by where
}

func (s *Server) buildMetrics(db *bolt.Engine) {
	m := &s.metrics
	m.registry = prometheus.NewRegistry()
	counter := func(name, help string, labels ...string) *prometheus.CounterVec {
		v := prometheus.NewCounterVec(prometheus.CounterOpts{Name: "keystead_" + name, Help: help}, labels)
		m.registry.MustRegister(v)
		return v
	}
	m.requests = counter("http_requests_total", "HTTP requests answered.", "route", "method", "code")
	m.failures = counter("auth_failures_total", "Attempts to prove an identity that failed.", "surface", "reason")
	m.limited = counter("rate_limited_total", "Requests and connections refused for a limit.", "limit")
	m.panics = counter("panics_total", "Panics that were caught.", "where")
	m.took = prometheus.NewHistogramVec(prometheus.HistogramOpts{
		Name: "keystead_http_request_duration_seconds", Help: "How long HTTP requests took.",
		Buckets: []float64{.0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 10},
	}, []string{"route"})
	build := prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "keystead_build_info", Help: "What runs; always 1."}, []string{"version", "goversion"})
	m.registry.MustRegister(m.took, build, collectors.NewGoCollector(),
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}), reading{s, db})
	build.WithLabelValues(s.Version, runtime.Version()).Set(1)
}

// measured counts requests by their route. A path that is no route counts as
// one, whatever it was.
func (s *Server) measured(routes []route) echo.MiddlewareFunc {
	known := map[string]map[string]*meter{}
	methods := map[string]bool{}
	for _, r := range routes {
		methods[r.method] = true
	}
	for _, r := range append(slices.Clone(routes), route{path: noRoute}) {
		if known[r.path] != nil {
			continue
		}
		known[r.path] = map[string]*meter{}
		for method := range methods {
			known[r.path][method] = &meter{metrics: &s.metrics, path: r.path, method: method}
		}
		known[r.path][otherMethod] = &meter{metrics: &s.metrics, path: r.path, method: otherMethod}
	}
	return func(next echo.HandlerFunc) echo.HandlerFunc {
		return func(c echo.Context) error {
			start := s.Now()
			err := next(c)
			of := known[c.Path()]
			if of == nil {
				of = known[noRoute]
			}
			m := of[c.Request().Method]
			if m == nil {
				m = of[otherMethod]
			}
			m.count(c.Response().Status, s.Now().Sub(start))
			return err
		}
	}
}

// What requests for no route, and those with a method of none, are counted as.
const (
	noRoute     = "none"
	otherMethod = "other"
)

// meter counts the requests of one method for one path. It holds on to its
// counters, which take a while to find by their labels.
type meter struct {
	*metrics
	path, method string

	mu    sync.RWMutex
	codes map[int]prometheus.Counter
	long  prometheus.Observer
}

func (m *meter) count(code int, took time.Duration) {
	m.mu.RLock()
	counter := m.codes[code]
	m.mu.RUnlock()
	if counter == nil {
		counter = m.find(code)
	}
	counter.Inc()
	m.long.Observe(took.Seconds())
}

func (m *meter) find(code int) prometheus.Counter {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.codes == nil {
		m.codes, m.long = map[int]prometheus.Counter{}, m.took.WithLabelValues(m.path)
	}
	m.codes[code] = m.requests.WithLabelValues(m.path, m.method, strconv.Itoa(code))
	return m.codes[code]
}

func (s *Server) metricsHandler() http.Handler {
	return promhttp.HandlerFor(s.metrics.registry, promhttp.HandlerOpts{})
}

// reading is what is looked up when the metrics are read.
type reading struct {
	s  *Server
	db *bolt.Engine
}

func describe(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc("keystead_"+name, help, labels, nil)
}

var (
	descReady        = describe("ready", "Whether the server takes requests.")
	descSealed       = describe("sealed", "Whether the secrets cannot be opened for lack of a master key.")
	descStoreSize    = describe("store_size_bytes", "Size of the database file.")
	descStoreFree    = describe("store_free_bytes", "Space in the database file that will be used again.")
	descStoreMax     = describe("store_max_size_bytes", "What the database file may grow to; 0 is no limit.")
	descCommits      = describe("store_commits_total", "Transactions of the database file, each with its fsyncs.")
	descUpdates      = describe("store_updates_total", "Updates that were in them.")
	descFailed       = describe("store_failed_commits_total", "Transactions that failed.")
	descCommitTime   = describe("store_commit_seconds_total", "Time spent in transactions.")
	descLongestView  = describe("store_read_tx_seconds_max", "The longest read, ended or not; the file grows while one lasts.")
	descOpenViews    = describe("store_open_reads", "Reads that go on.")
	descAudit        = describe("audit_records_total", "Records of the audit trail ever written.")
	descCheckpoint   = describe("audit_checkpoint_timestamp_seconds", "When the last checkpoint of the audit trail was published.")
	descTLS          = describe("tls_not_after_timestamp_seconds", "When the server's own certificate ends.")
	descBackup       = describe("backup_last_success_timestamp_seconds", "When the last backup was made; 0 for none since the start.")
	descHandshakes   = describe("dtls_handshakes_total", "CoAP handshakes, DTLS and TLS, by what came of them.", "result")
	descSessions     = describe("dtls_connections", "CoAP sessions that are open.")
	descHalfOpen     = describe("dtls_half_open", "CoAP handshakes that go on.")
	descDropped      = describe("dtls_datagrams_dropped_total", "Datagrams and records dropped.", "reason")
	descCoAP         = describe("coap_requests_total", "CoAP requests answered, by the class of the answer.", "code")
	descCoAPRevoked  = describe("coap_sessions_revoked_total", "CoAP sessions closed because a device or credential was ended.")
	descParked       = describe("coap_sessions_parked", "Idle CoAP sessions over DTLS that hold little more than their keys.")
	descWakes        = describe("coap_wakes_total", "Times a CoAP session over DTLS was made ready to be used: first when it begins, and each time it was parked.")
	descRoams        = describe("coap_roams_total", "Times the peer of a CoAP session was found at another address, by its connection id.")
	descCoAPPanics   = describe("coap_panics_total", "Panics in handlers of CoAP that were caught.")
	descRenewals     = describe("certificates_renewal", "Certificates that are to be renewed, and that expire soon, by what their enrolment profiles say.", "state")
	everyDescription = []*prometheus.Desc{
		descReady, descSealed, descStoreSize, descStoreFree, descStoreMax, descCommits, descUpdates, descFailed, descCommitTime, descLongestView, descOpenViews,
		descAudit, descCheckpoint, descTLS, descBackup, descHandshakes, descSessions, descHalfOpen, descDropped, descCoAP, descCoAPRevoked, descCoAPPanics,
		descParked, descWakes, descRoams,
		descRenewals,
	}
)

// Describe implements prometheus.Collector.
func (reading) Describe(out chan<- *prometheus.Desc) {
	for _, d := range everyDescription {
		out <- d
	}
}

// Collect implements prometheus.Collector.
func (r reading) Collect(out chan<- prometheus.Metric) {
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		out <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	count := func(d *prometheus.Desc, v float64, labels ...string) {
		out <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, v, labels...)
	}
	gauge(descReady, number(r.s.ready.Load()))
	gauge(descSealed, number(r.s.keys == nil))
	st := r.db.Stats()
	gauge(descStoreSize, float64(st.Size))
	gauge(descStoreFree, float64(st.FreeBytes))
	gauge(descStoreMax, float64(st.MaxSize))
	count(descCommits, float64(st.Commits))
	count(descUpdates, float64(st.Updates))
	count(descFailed, float64(st.FailedCommits))
	count(descCommitTime, st.CommitTime.Seconds())
	gauge(descLongestView, max(st.LongestView, st.OldestView).Seconds())
	gauge(descOpenViews, float64(st.OpenViews))
	if a := r.s.Audit; a != nil {
		count(descAudit, float64(a.Written()))
		gauge(descCheckpoint, seconds(a.Published().At))
	}
	if c := r.s.tls.first(); c != nil {
		gauge(descTLS, seconds(c.Leaf.NotAfter))
	}
	if r.s.PKI != nil {
		for _, state := range []pki.Renewal{pki.RenewalPending, pki.ExpiringSoon} {
			if n, err := r.s.PKI.Renewals(context.Background(), state); err == nil { // else it is left out, as it is not known
				gauge(descRenewals, float64(n), string(state))
			}
		}
	}
	gauge(descBackup, float64(r.s.lastBackup.Load()))
	if r.s.CoAP != nil {
		r.gateway(gauge, count)
	}
}

func (r reading) gateway(gauge, count func(*prometheus.Desc, float64, ...string)) {
	st, now := r.s.CoAP.Stats(), r.s.CoAP.Gauges()
	count(descHandshakes, float64(st.Handshakes.Load()), "ok")
	count(descHandshakes, float64(st.HandshakesFailed.Load()), "failed")
	count(descHandshakes, float64(st.HandshakesShed.Load()), "shed")
	count(descHandshakes, float64(st.HandshakesEvicted.Load()), "evicted")
	count(descDropped, float64(st.DatagramsDropped.Load()), "datagram")
	count(descDropped, float64(st.RecordsDropped.Load()), "record")
	count(descDropped, float64(st.MessagesMalformed.Load()), "message")
	for class := range st.Requests {
		if class >= 2 { // of an answer: 2.xx, 4.xx, 5.xx
			count(descCoAP, float64(st.Requests[class].Load()), strconv.Itoa(class)+".xx")
		}
	}
	count(descCoAPRevoked, float64(st.SessionsRevoked.Load()))
	count(descCoAPPanics, float64(st.Panics.Load()))
	count(descWakes, float64(st.Wakes.Load()))
	count(descRoams, float64(st.Roams.Load()))
	gauge(descSessions, float64(now.Sessions))
	gauge(descParked, float64(now.Parked))
	gauge(descHalfOpen, float64(now.HalfOpen))
}

func number(b bool) float64 {
	if b {
		return 1
	}
	return 0
}

func seconds(t time.Time) float64 {
	if t.IsZero() {
		return 0
	}
	return float64(t.UnixMilli()) / 1000
}
