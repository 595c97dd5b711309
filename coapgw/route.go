package coapgw

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"keystead/coap"
)

// resource is one path with its methods.
type resource struct {
	segments []string
	methods  map[coap.Code]coap.Route
}

// router finds the resource of a path. It is built once and then only read.
type router struct {
	fixed    map[string]*resource
	patterns []*resource
	links    []link6690
}

// newRouter builds the router of routes, and says what is wrong with them.
func newRouter(routes []coap.Route) (*router, error) {
	rt := &router{fixed: map[string]*resource{}}
	var faults []error
	for _, r := range routes {
		switch {
		case !strings.HasPrefix(r.Path, "/"), r.Handle == nil, r.Need == "":
			faults = append(faults, fmt.Errorf("coapgw: route %v %q: it needs a path, a handler, and what it asks of its caller", r.Method, r.Path))
			continue
		}
		res := rt.resource(r.Path)
		if _, taken := res.methods[r.Method]; taken {
			faults = append(faults, fmt.Errorf("coapgw: route %v %q is there twice", r.Method, r.Path))
		}
		res.methods[r.Method] = r
		if r.Listed || r.Link != "" {
			rt.links = append(rt.links, link6690{r.Path, r.Link})
		}
	}
	slices.SortFunc(rt.links, func(a, b link6690) int { return strings.Compare(a.path, b.path) })
	return rt, errors.Join(faults...)
}

func (rt *router) resource(path string) *resource {
	segments := strings.Split(path[1:], "/")
	if !strings.Contains(path, "{") {
		if rt.fixed[path] == nil {
			rt.fixed[path] = &resource{segments: segments, methods: map[coap.Code]coap.Route{}}
		}
		return rt.fixed[path]
	}
	for _, res := range rt.patterns {
		if slices.Equal(res.segments, segments) {
			return res
		}
	}
	res := &resource{segments: segments, methods: map[coap.Code]coap.Route{}}
	rt.patterns = append(rt.patterns, res)
	return res
}

// find returns the resource of path and the variables in it, nil if there is none.
func (rt *router) find(path string) (*resource, []string) {
	if res := rt.fixed[path]; res != nil {
		return res, nil
	}
	segments := strings.Split(path[1:], "/")
	var best *resource
	var vars []string
	literal := -1
	for _, res := range rt.patterns {
		v, n, ok := res.match(segments)
		if ok && n > literal {
			best, vars, literal = res, v, n
		}
	}
	return best, vars
}

// match reports whether the segments are those of the resource, with the
// variables and how many of them are literal.
func (res *resource) match(segments []string) (vars []string, literal int, ok bool) {
	if len(segments) != len(res.segments) {
		return nil, 0, false
	}
	for i, want := range res.segments {
		switch {
		case strings.HasPrefix(want, "{") && segments[i] != "":
			vars = append(vars, strings.Trim(want, "{}"), segments[i])
		case want == segments[i]:
			literal++
		default:
			return nil, 0, false
		}
	}
	return vars, literal, true
}

// link6690 is one entry of /.well-known/core (RFC 6690).
type link6690 struct{ path, attributes string }

// encodeLinks returns the entries that match the query, "name=value" with an optional
// "*" at the end, as a link-format document.
func encodeLinks(links []link6690, query []string) ([]byte, error) {
	if len(query) > 1 {
		return nil, coap.Errorf(coap.BadRequest, "at most one query parameter filters the links")
	}
	var doc strings.Builder
	for _, l := range links {
		if len(query) == 1 && !l.matches(query[0]) {
			continue
		}
		if doc.Len() > 0 {
			doc.WriteByte(',')
		}
		doc.WriteString("<" + l.path + ">")
		if l.attributes != "" {
			doc.WriteString(";" + l.attributes)
		}
	}
	return []byte(doc.String()), nil
}

func (l link6690) matches(query string) bool {
	name, value, _ := strings.Cut(query, "=")
	values := []string{l.path}
	if name != "href" {
		values = nil
		for attribute := range strings.SplitSeq(l.attributes, ";") {
			if key, v, _ := strings.Cut(attribute, "="); key == name {
				values = strings.Fields(strings.Trim(v, `"`)) // rt, if and ct list several
			}
		}
	}
	start, wild := strings.CutSuffix(value, "*")
	return slices.ContainsFunc(values, func(v string) bool {
		return v == value || (wild && strings.HasPrefix(v, start))
	})
}
