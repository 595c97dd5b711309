package lwm2m

import (
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"keystead/coap"
)

// Query is what a client says in the Uri-Query options of a request.
type Query struct {
	Endpoint string
	HasPCT   bool
	PCT      coap.Format // the format it prefers to be written in; with 1.1 and later
	Lifetime int64       // lt, in seconds; 0 if not given
	Version  string      // lwm2m
	Binding  string      // b
}

// maxEndpoint is the longest endpoint name, in bytes.
const maxEndpoint = 256

// ParseQuery reads the Uri-Query options of a request. Parameters it does not
// know are passed over; one it knows must not stand twice. Its errors are 4.00.
func ParseQuery(options coap.Options) (q Query, err error) {
	seen := map[string]bool{}
	for _, text := range options.Strings(coap.URIQuery) {
		name, value, _ := strings.Cut(text, "=")
		if seen[name] && name == "ep" {
			return q, coap.Errorf(coap.BadRequest, "ep is there twice")
		}
		seen[name] = true
		switch name {
		case "ep":
			if len(value) > maxEndpoint || !utf8.ValidString(value) || strings.ContainsFunc(value, unicode.IsControl) {
				return q, coap.Errorf(coap.BadRequest, "ep is longer than 256 bytes, or not text")
			}
			q.Endpoint = value
		case "pct":
			n, err := strconv.ParseUint(value, 10, 16)
			if err != nil {
				return q, coap.Errorf(coap.BadRequest, "pct is not the number of a content format")
			}
			q.HasPCT, q.PCT = true, coap.Format(n)
		case "lt":
			n, err := strconv.ParseUint(value, 10, 32)
			if err != nil || n == 0 {
				return q, coap.Errorf(coap.BadRequest, "lt is not a number of seconds")
			}
			q.Lifetime = int64(n)
		case "lwm2m":
			if q.Version = value; len(value) > 8 {
				return q, coap.Errorf(coap.BadRequest, "lwm2m is not a version")
			}
		case "b":
			if q.Binding = value; len(value) > 16 {
				return q, coap.Errorf(coap.BadRequest, "b is not a binding")
			}
		}
	}
	return q, nil
}
