package authsets

import "keystead/store"

// Asked returns what requests and tokens read of a device's record: its ids, and of each of the
// sets of d its id, status and epoch as they are found by its key and by its id.
func Asked(tx store.Tx, d Device) (got Device, byID []Set, err error) {
	a, err := asks.Get(tx, d.ID)
	if err != nil {
		return got, nil, err
	}
	got = Device{ID: a.ID, Org: a.Org}
	for _, set := range d.Sets {
		one, found, err := a.withKey(set.Key)
		if err != nil || !found {
			return got, nil, err
		}
		got.Sets = append(got.Sets, Set{ID: string(one.id), Key: one.key, Status: one.status, Epoch: one.epoch})
		if one, found, err = a.named(set.ID); err != nil || !found {
			return got, nil, err
		}
		byID = append(byID, Set{ID: string(one.id), Key: one.key, Status: one.status, Epoch: one.epoch})
	}
	for _, nobody := range []string{"", "x", d.ID, string(d.Identity)} {
		if one, found, err := a.named(nobody); found || err != nil {
			return got, []Set{{ID: string(one.id)}}, err
		}
		if one, found, err := a.withKey([]byte(nobody)); found || err != nil {
			return got, []Set{{ID: string(one.id)}}, err
		}
	}
	return got, byID, nil
}

// Put stores a device as it is.
func Put(tx store.Tx, d Device) error { return table.Set(tx, d.ID, d) }
