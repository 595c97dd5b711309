package lwm2m

import (
	"fmt"
	"slices"
)

// nestedCBOR writes instances as nested maps, object to instance to resource, the
// ids ascending (LwM2M 1.2, 7.4.7).
func nestedCBOR(list []Instance) []byte {
	list = slices.Clone(list)
	slices.SortStableFunc(list, func(a, b Instance) int {
		if a.Object != b.Object {
			return int(a.Object) - int(b.Object)
		}
		return int(a.ID) - int(b.ID)
	})
	var objects [][]Instance
	for _, i := range list {
		if n := len(objects); n > 0 && objects[n-1][0].Object == i.Object {
			objects[n-1] = append(objects[n-1], i)
			continue
		}
		objects = append(objects, []Instance{i})
	}
	b := cborHead(nil, cborMap, uint64(len(objects)))
	for _, instances := range objects {
		b = cborInt(b, int64(instances[0].Object))
		b = cborHead(b, cborMap, uint64(len(instances)))
		for _, i := range instances {
			b = cborInt(b, int64(i.ID))
			b = cborHead(b, cborMap, uint64(len(i.Resources)))
			for _, r := range i.Resources {
				b = cborInt(b, int64(r.ID))
				if r.Values == nil {
					b = cborValue(b, r.Value)
					continue
				}
				b = cborHead(b, cborMap, uint64(len(r.Values)))
				for _, e := range r.Values {
					b = cborValue(cborInt(b, int64(e.ID)), e.Value)
				}
			}
		}
	}
	return b
}

// ParseCBOR reads LwM2M CBOR, nested maps. A key may be one id, or an array of several
// levels at once.
func ParseCBOR(b []byte) ([]Instance, error) {
	item, err := parseCBOR(b)
	if err != nil {
		return nil, err
	}
	root, ok := item.(cborPairs)
	if !ok {
		return nil, fmt.Errorf("%w: LwM2M CBOR is a map, not a %T", ErrFormat, item)
	}
	var t tree
	if err := t.walk(nil, root); err != nil {
		return nil, err
	}
	return t.list, nil
}

// walk adds what is below path.
func (t *tree) walk(path []uint16, node cborPairs) error {
	for _, p := range node {
		ids, err := keyPath(p.key)
		if err != nil {
			return err
		}
		at := append(slices.Clone(path), ids...)
		switch v := p.value.(type) {
		case cborPairs:
			if err := t.walk(at, v); err != nil {
				return err
			}
			continue
		case []any:
			return fmt.Errorf("%w: an array for a value", ErrFormat)
		case string:
			if len(at) >= 3 && TypeOf(at[0], at[2]) == ObjectLink {
				if p.value, err = parseLink(v); err != nil {
					return err
				}
			}
		}
		if err := t.add(at, p.value); err != nil {
			return err
		}
	}
	return nil
}

func keyPath(key any) ([]uint16, error) {
	levels, ok := key.([]any)
	if !ok {
		levels = []any{key}
	}
	ids := make([]uint16, 0, len(levels))
	for _, level := range levels {
		n, ok := level.(int64)
		if !ok || n < 0 || n > 0xffff {
			return nil, fmt.Errorf("%w: a key of type %T", ErrFormat, level)
		}
		ids = append(ids, uint16(n))
	}
	return ids, nil
}
