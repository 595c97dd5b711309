package authsets

import (
	"bytes"

	"keystead/store"
)

// asked is what of a [Device] decides about a request for a token, or about a token. Every one
// of them reads it, so it is read from the record without decoding the rest.
type asked struct {
	ID  string
	Org string

	sets []byte // as in the record: only one of them is asked for
}

// askedSet is what of a [Set] does. Its id and key are bytes of the record.
type askedSet struct {
	id, key []byte
	status  Status
	epoch   uint64
}

// asks reads the records of table, and never writes them.
var asks = store.NewTable("auth device", store.Index[asked]{Name: "identity", Unique: true})

// UnmarshalCBOR implements [store.Unmarshaler]: it reads the record of a [Device].
func (d *asked) UnmarshalCBOR(b []byte) error {
	r := store.Read(b)
	for n := r.Map(); n > 0; n-- {
		switch string(r.Text()) {
		case "id":
			d.ID = string(r.Text())
		case "org":
			d.Org = string(r.Text())
		case "sets":
			d.sets = r.Item()
		default:
			r.Skip()
		}
	}
	return r.Err()
}

// withKey returns the set with a key.
func (d *asked) withKey(key []byte) (askedSet, bool, error) {
	return d.set(func(s askedSet) bool { return bytes.Equal(s.key, key) })
}

// named returns the set with an id.
func (d *asked) named(setID string) (askedSet, bool, error) {
	return d.set(func(s askedSet) bool { return string(s.id) == setID })
}

func (d *asked) set(wanted func(askedSet) bool) (s askedSet, ok bool, err error) {
	if d.sets == nil {
		return s, false, nil
	}
	r := store.Read(d.sets)
	for n := r.Array(); n > 0; n-- {
		if s = readSet(&r); r.Err() == nil && wanted(s) {
			return s, true, nil
		}
	}
	return askedSet{}, false, r.Err()
}

// readSet reads the set that begins here.
func readSet(r *store.Reader) (s askedSet) {
	for n := r.Map(); n > 0; n-- {
		switch string(r.Text()) {
		case "id":
			s.id = r.Text()
		case "key":
			s.key = r.Bytes()
		case "status":
			s.status = Status(r.Text())
		case "epoch":
			s.epoch = r.Uint()
		default:
			r.Skip()
		}
	}
	return s
}
