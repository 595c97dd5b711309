package config

import (
	"cmp"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"reflect"
	"slices"
	"strconv"
	"strings"
)

// validator is what the Config of a room is.
type validator interface{ Validate() error }

// sections validates each section of c that can be.
func sections(c Config) error {
	var faults []error
	v := reflect.ValueOf(c)
	for i := range v.NumField() {
		if key := tag(v.Type().Field(i)); key != "" {
			if section, ok := reflect.TypeAssert[validator](v.Field(i)); ok {
				faults = append(faults, under(key, section.Validate()))
			}
		}
	}
	return errors.Join(faults...)
}

func tag(f reflect.StructField) string {
	name, _, _ := strings.Cut(f.Tag.Get("mapstructure"), ",")
	return name
}

// under puts the name of a section before every error joined in err.
func under(section string, err error) error {
	if err == nil {
		return nil
	}
	if many, ok := err.(interface{ Unwrap() []error }); ok {
		var out []error
		for _, e := range many.Unwrap() {
			out = append(out, under(section, e))
		}
		return errors.Join(out...)
	}
	return fmt.Errorf("%s.%w", section, err)
}

func check(ok bool, format string, args ...any) error {
	if ok {
		return nil
	}
	return fmt.Errorf(format, args...)
}

func atLeast[T cmp.Ordered](key string, v, least T) error {
	return check(v >= least, "%s: %v is too little; the least is %v", key, v, least)
}

func oneOf(key, v string, words ...string) error {
	return check(slices.Contains(words, v), "%s: %q is not one of %s", key, v, strings.Join(words, ", "))
}

// checkAddr refuses what is not an address to listen on. An empty one switches
// the listener off.
func checkAddr(key, addr string) error {
	if addr == "" {
		return nil
	}
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return fmt.Errorf("%s: %q is not host:port, such as 127.0.0.1:8443 or :8443; leave it empty to switch the listener off", key, addr)
	}
	if _, err := strconv.ParseUint(port, 10, 16); err != nil {
		return fmt.Errorf("%s: the port of %q is not a number from 0 to 65535", key, addr)
	}
	return check(!strings.ContainsAny(host, " /"), "%s: the host of %q is not a name or an address", key, addr)
}

func checkURL(key, text string) error {
	if text == "" {
		return nil
	}
	u, err := url.Parse(text)
	ok := err == nil && u.Scheme == "https" && u.Host != "" && u.User == nil && u.RawQuery == "" && u.Fragment == "" && strings.Trim(u.Path, "/") == ""
	return check(ok, "%s: %q is not https://host or https://host:port", key, text)
}

func checkPrefixes(key string, list []string) error {
	var faults []error
	for _, text := range list {
		if _, err := parsePrefix(text); err != nil {
			faults = append(faults, fmt.Errorf("%s: %q is not an address or a network, such as 10.0.0.5 or 10.0.0.0/8", key, text))
		}
	}
	return errors.Join(faults...)
}

func parsePrefix(text string) (netip.Prefix, error) {
	if ip, err := netip.ParseAddr(text); err == nil {
		ip = ip.Unmap().WithZone("")
		return netip.PrefixFrom(ip, ip.BitLen()), nil
	}
	p, err := netip.ParsePrefix(text)
	return p.Masked(), err
}

func checkNames(key string, names []string) error {
	var faults []error
	for _, name := range names {
		if _, err := netip.ParseAddr(name); err == nil {
			continue
		}
		ok := name != "" && len(name) <= 253 && !strings.ContainsAny(name, " /:@\x00")
		faults = append(faults, check(ok, "%s: %q is not a DNS name or an address", key, name))
	}
	return errors.Join(faults...)
}
