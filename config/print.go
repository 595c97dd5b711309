package config

import (
	"errors"
	"fmt"
	"reflect"
	"strconv"
	"strings"
)

// Setting is one key as it stands.
type Setting struct {
	Key    string `json:"key"`
	Value  string `json:"value"` // "[secret]" for what must not be shown
	Origin Origin `json:"origin"`
}

// Settings lists every key with its value and where that came from, in order.
func (c Config) Settings() []Setting {
	keys := leaves(reflect.ValueOf(&c).Elem(), "")
	all := make([]Setting, 0, len(keys))
	for _, key := range sorted(keys) {
		s := Setting{Key: key, Value: fmt.Sprint(keys[key].Interface()), Origin: c.origins[key]}
		if list, ok := reflect.TypeAssert[[]string](keys[key]); ok {
			s.Value = strings.Join(list, ",")
		}
		if s.Origin == "" {
			s.Origin = FromDefault
		}
		all = append(all, s)
	}
	return all
}

// Size is a number of bytes, written with a unit where that is shorter: 64KiB.
type Size int64

var units = []struct {
	suffix string
	bytes  Size
}{{"GiB", 1 << 30}, {"MiB", 1 << 20}, {"KiB", 1 << 10}}

// String writes s as UnmarshalText reads it.
func (s Size) String() string {
	for _, u := range units {
		if s != 0 && s%u.bytes == 0 {
			return strconv.FormatInt(int64(s/u.bytes), 10) + u.suffix
		}
	}
	return strconv.FormatInt(int64(s), 10)
}

// UnmarshalText reads a number of bytes, with or without KiB, MiB or GiB.
func (s *Size) UnmarshalText(text []byte) error {
	digits, unit := strings.TrimSpace(string(text)), Size(1)
	for _, u := range units {
		if rest, ok := strings.CutSuffix(digits, u.suffix); ok {
			digits, unit = strings.TrimSpace(rest), u.bytes
			break
		}
	}
	n, err := strconv.ParseInt(digits, 10, 64)
	if err != nil || n < 0 || n > (1<<62)/int64(unit) {
		return errors.New("not a size")
	}
	*s = Size(n) * unit
	return nil
}
