package lwm2m

import (
	"fmt"
	"strconv"
	"strings"

	"keystead/coap"
)

// Object ids.
const (
	objectSecurity = 0
	objectServer   = 1
	objectACL      = 2
	objectOSCORE   = 21
)

// FormatOldTLV is the content format of TLV before IANA gave it a number; some
// clients in the field know no other.
const FormatOldTLV coap.Format = 1542

// Instance is an object instance and its resources, in the order of their ids.
type Instance struct {
	Object, ID uint16
	Resources  []Resource
}

// Path is where the instance is written: "/0/1".
func (i Instance) Path() string { return fmt.Sprintf("/%d/%d", i.Object, i.ID) }

// Resource is one resource: a value, or several by their own ids.
type Resource struct {
	ID     uint16
	Value  Value
	Values []Element // of a multiple resource, in place of Value
}

// Element is one value of a multiple resource.
type Element struct {
	ID    uint16
	Value Value
}

// Value is an int64, float64, bool, string, []byte or Link.
type Value any

// Link is an object link: the path of an instance.
type Link struct{ Object, Instance uint16 }

// String returns the link as text formats write it.
func (l Link) String() string { return fmt.Sprintf("%d:%d", l.Object, l.Instance) }

// parseLink reads what String writes.
func parseLink(s string) (Link, error) {
	object, instance, ok := strings.Cut(s, ":")
	o, err := strconv.ParseUint(object, 10, 16)
	i, err2 := strconv.ParseUint(instance, 10, 16)
	if !ok || err != nil || err2 != nil {
		return Link{}, fmt.Errorf("%w: %q is no object link", ErrFormat, s)
	}
	return Link{uint16(o), uint16(i)}, nil
}

// Resource returns the value of a resource, nil if it is not there.
func (i Instance) Resource(id uint16) Value {
	for _, r := range i.Resources {
		if r.ID == id {
			return r.Value
		}
	}
	return nil
}

// Type is what the value of a resource is.
type Type uint8

// The types. An Opaque is a []byte; a Time is an int64.
const (
	Opaque Type = iota // also of a resource that is not known
	String
	Integer
	Boolean
	Float
	ObjectLink
)

// types says what the resources of the objects a bootstrap writes are. TLV does
// not say it by itself.
var types = map[uint16]map[uint16]Type{
	objectSecurity: {
		0: String, 1: Boolean, 2: Integer, 3: Opaque, 4: Opaque, 5: Opaque, 6: Integer, 7: Opaque, 8: Opaque, 9: String,
		10: Integer, 11: Integer, 12: Integer, 13: Integer, 14: String, 15: Integer, 16: Integer, 17: ObjectLink,
		18: Integer, 19: Integer, 20: Integer, 21: Integer, 22: Integer, 23: Integer, 24: Integer, 25: String,
		26: ObjectLink, 27: ObjectLink, 28: Integer, 29: Integer, 30: String,
	},
	objectServer: {
		0: Integer, 1: Integer, 2: Integer, 3: Integer, 5: Integer, 6: Boolean, 7: String, 10: ObjectLink, 11: Integer,
		12: Integer, 13: Integer, 14: Integer, 15: Boolean, 16: Boolean, 17: Integer, 18: Integer, 19: Integer,
		20: Integer, 21: Boolean, 22: String, 23: Boolean, 24: ObjectLink, 25: String, 26: Integer, 27: Integer,
	},
	objectACL:    {0: Integer, 1: Integer, 2: Integer, 3: Integer},
	objectOSCORE: {0: Opaque, 1: Opaque, 2: Opaque, 3: Integer, 4: Integer, 5: Opaque, 6: Opaque},
}

// TypeOf returns the type of a resource.
func TypeOf(object, resource uint16) Type { return types[object][resource] }

// splitPath reads "/1", "/1/0" or "/1/0/7" and deeper into numbers.
func splitPath(path string) ([]uint16, error) {
	rest, ok := strings.CutPrefix(path, "/")
	if !ok {
		return nil, fmt.Errorf("%w: the path %q does not begin with /", ErrFormat, path)
	}
	var ids []uint16
	for part := range strings.SplitSeq(rest, "/") {
		n, err := strconv.ParseUint(part, 10, 16)
		if err != nil || len(ids) == 4 {
			return nil, fmt.Errorf("%w: the path %q is not of up to four numbers", ErrFormat, path)
		}
		ids = append(ids, uint16(n))
	}
	return ids, nil
}

// tree gathers values by path into instances, in the order they come.
type tree struct{ list []Instance }

// add puts v at a path of three numbers, or four for an element.
func (t *tree) add(ids []uint16, v Value) error {
	if len(ids) != 3 && len(ids) != 4 {
		return fmt.Errorf("%w: a value at a path of %d numbers", ErrFormat, len(ids))
	}
	i := t.instance(ids[0], ids[1])
	n := len(i.Resources) - 1
	if n < 0 || i.Resources[n].ID != ids[2] {
		i.Resources = append(i.Resources, Resource{ID: ids[2]})
		n++
	}
	r := &i.Resources[n]
	switch {
	case len(ids) == 4 && r.Value == nil:
		r.Values = append(r.Values, Element{ids[3], v})
	case len(ids) == 3 && r.Value == nil && r.Values == nil:
		r.Value = v
	default:
		return fmt.Errorf("%w: /%d/%d/%d is there twice", ErrFormat, ids[0], ids[1], ids[2])
	}
	return nil
}

func (t *tree) instance(object, id uint16) *Instance {
	for n := range t.list {
		if t.list[n].Object == object && t.list[n].ID == id {
			return &t.list[n]
		}
	}
	t.list = append(t.list, Instance{Object: object, ID: id})
	return &t.list[len(t.list)-1]
}

// Encode encodes the resources of one instance for a write to its path.
func Encode(f coap.Format, i Instance) ([]byte, error) {
	switch f {
	case coap.LwM2MTLV, FormatOldTLV:
		return AppendTLV(nil, i.Resources), nil
	case coap.SenMLJSON:
		return senMLJSON(senMLRecords(i.Path()+"/", []Instance{i}))
	case coap.SenMLCBOR:
		return senMLCBOR(senMLRecords(i.Path()+"/", []Instance{i})), nil
	case coap.LwM2MCBOR:
		return nestedCBOR([]Instance{i}), nil
	default:
		return nil, fmt.Errorf("lwm2m: no encoding for content format %d", f)
	}
}

// EncodePack encodes instances as one Bootstrap-Pack, with absolute paths.
func EncodePack(f coap.Format, list []Instance) ([]byte, error) {
	switch f {
	case coap.SenMLJSON:
		return senMLJSON(senMLRecords("", list))
	case coap.SenMLCBOR:
		return senMLCBOR(senMLRecords("", list)), nil
	case coap.LwM2MCBOR:
		return nestedCBOR(list), nil
	default:
		return nil, fmt.Errorf("lwm2m: no pack in content format %d", f)
	}
}

// Decode reads what was written to path, an object or an instance.
func Decode(f coap.Format, path string, b []byte) ([]Instance, error) {
	ids, err := splitPath(path)
	if err != nil {
		return nil, err
	}
	switch f {
	case coap.LwM2MTLV, FormatOldTLV:
		return decodeTLV(ids, b)
	case coap.SenMLJSON:
		return ParseSenMLJSON(b)
	case coap.SenMLCBOR:
		return ParseSenMLCBOR(b)
	case coap.LwM2MCBOR:
		return ParseCBOR(b)
	default:
		return nil, fmt.Errorf("lwm2m: no decoder for content format %d", f)
	}
}
