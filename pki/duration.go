package pki

import (
	"errors"
	"strconv"
	"strings"
	"time"

	"keystead/fault"
)

// Duration is a length of time in the notation of enrolment settings: decimal
// numbers with the units ns, us, µs, ms, s, m, h, d, w and y, where a year is 52
// weeks: "1y2w3d".
type Duration time.Duration

var durationUnits = []struct {
	name string
	unit time.Duration
}{
	{"y", 8736 * time.Hour},
	{"w", 168 * time.Hour},
	{"d", 24 * time.Hour},
	{"h", time.Hour},
	{"ms", time.Millisecond},
	{"m", time.Minute},
	{"s", time.Second},
	{"us", time.Microsecond},
	{"µs", time.Microsecond},
	{"ns", time.Nanosecond},
}

var errDuration = errors.New(`write a duration as numbers with units, such as "1y2w3d" or "90m"`)

// ParseDuration parses the notation of [Duration].
func ParseDuration(text string) (Duration, error) {
	rest, negative := strings.CutPrefix(text, "-")
	if !negative {
		rest = strings.TrimPrefix(rest, "+")
	}
	if rest == "0" {
		return 0, nil
	}
	if rest == "" || len(rest) > 64 {
		return 0, errDuration
	}
	var total float64
	for rest != "" {
		digits := strings.IndexFunc(rest, func(r rune) bool { return (r < '0' || r > '9') && r != '.' })
		if digits <= 0 {
			return 0, errDuration
		}
		n, err := strconv.ParseFloat(rest[:digits], 64)
		if err != nil {
			return 0, errDuration
		}
		rest = rest[digits:]
		unit := strings.IndexFunc(rest, func(r rune) bool { return r >= '0' && r <= '9' || r == '.' })
		if unit < 0 {
			unit = len(rest)
		}
		size := unitNamed(rest[:unit])
		if size == 0 {
			return 0, errDuration
		}
		total += n * float64(size)
		rest = rest[unit:]
	}
	if total >= float64(1<<63-1) {
		return 0, errDuration
	}
	if negative {
		total = -total
	}
	return Duration(total), nil
}

func unitNamed(name string) time.Duration {
	for _, u := range durationUnits {
		if u.name == name {
			return u.unit
		}
	}
	return 0
}

// String returns d with the largest units first and no zero parts.
func (d Duration) String() string {
	if d == 0 {
		return "0s"
	}
	var b strings.Builder
	rest := time.Duration(d)
	if rest < 0 {
		b.WriteByte('-')
		rest = -rest
	}
	for _, name := range []string{"y", "w", "d", "h", "m", "s", "ms", "us", "ns"} {
		unit := unitNamed(name)
		if n := rest / unit; n > 0 {
			b.WriteString(strconv.FormatInt(int64(n), 10))
			b.WriteString(name)
			rest %= unit
		}
	}
	return b.String()
}

// MarshalText writes d as String does.
func (d Duration) MarshalText() ([]byte, error) { return []byte(d.String()), nil }

// UnmarshalText parses what ParseDuration does; "" is zero.
func (d *Duration) UnmarshalText(b []byte) error {
	if len(b) == 0 {
		*d = 0
		return nil
	}
	v, err := ParseDuration(string(b))
	if err != nil {
		return fault.New(fault.Invalid, "%q: %v", b, err)
	}
	*d = v
	return nil
}
