package lwm2m

import (
	"encoding/base64"
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// The resources that an administrator may set besides those that follow from the
// server and the policy, and since which minor version of LwM2M 1 clients know
// them. Executable ones, and those only the client writes, are none.
var (
	settableSecurity = map[uint16]int{
		9: 0, 11: 0, 12: 0, 13: 1,
		18: 2, 19: 2, 20: 2, 21: 2, 22: 2, 23: 2, 24: 2, 25: 2, 28: 2, 29: 2, 30: 2,
	}
	settableServer = map[uint16]int{
		5: 0, 10: 1, 13: 1, 14: 1, 15: 1, 16: 1, 17: 1, 18: 1, 19: 1, 20: 1, 21: 1, 22: 1, 23: 1,
		24: 2, 25: 2, 26: 2, 27: 2,
	}
)

// several are the resources with more than one value: written with spaces in between.
var several = map[[2]uint16]bool{
	{objectSecurity, 25}: true, {objectServer, 24}: true, {objectServer, 25}: true,
}

// typedResource is a resource and the minor version clients must have to know it.
type typedResource struct {
	Resource

	since int
}

// typedResources reads resources written as text, by their ids, in the order of
// the ids.
func typedResources(object uint16, texts map[string]string, settable map[uint16]int) ([]typedResource, error) {
	var list []typedResource
	for key, text := range texts {
		n, err := strconv.ParseUint(key, 10, 16)
		since, known := settable[uint16(n)]
		if err != nil || !known {
			return nil, fmt.Errorf("%q is no resource of /%d that can be set here", key, object)
		}
		if len(text) > 1024 {
			return nil, fmt.Errorf("/%d/x/%d is longer than 1024 bytes", object, n)
		}
		r := Resource{ID: uint16(n)}
		parts := []string{text}
		if several[[2]uint16{object, r.ID}] {
			parts = strings.Fields(text)
		}
		for i, part := range parts {
			v, err := typedValue(TypeOf(object, r.ID), part)
			if err != nil {
				return nil, fmt.Errorf("/%d/x/%d: %w", object, n, err)
			}
			if r.Value = v; several[[2]uint16{object, r.ID}] {
				r.Value, r.Values = nil, append(r.Values, Element{uint16(i), v})
			}
		}
		list = append(list, typedResource{r, since})
	}
	slices.SortFunc(list, func(a, b typedResource) int { return int(a.ID) - int(b.ID) })
	return list, nil
}

func typedValue(t Type, text string) (Value, error) {
	switch t {
	case Integer:
		n, err := strconv.ParseInt(text, 10, 64)
		if err != nil {
			return nil, fmt.Errorf("%q is no whole number", text)
		}
		return n, nil
	case Boolean:
		b, err := strconv.ParseBool(text)
		if err != nil {
			return nil, fmt.Errorf("%q is neither true nor false", text)
		}
		return b, nil
	case ObjectLink:
		return parseLink(text)
	case Opaque:
		b, err := base64.StdEncoding.DecodeString(text)
		if err != nil {
			return nil, fmt.Errorf("%q is not base64", text)
		}
		return b, nil
	case String, Float:
	}
	return text, nil
}

// override puts the resources a client of a minor version knows in place of those
// of the same ids, or among them.
func override(list []Resource, with []typedResource, minor int) []Resource {
	for _, r := range with {
		if r.since > minor {
			continue
		}
		list = slices.DeleteFunc(list, func(old Resource) bool { return old.ID == r.ID })
		list = append(list, r.Resource)
	}
	slices.SortStableFunc(list, func(a, b Resource) int { return int(a.ID) - int(b.ID) })
	return list
}
