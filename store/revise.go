package store

import (
	"context"
	"strings"
)

// reviseBatch is how many records one transaction of Revise looks at.
const reviseBatch = 200

// Revise goes through every record of the table, in transactions of a few, and
// stores those that change says it has changed. It returns how many they were.
// change may be called again for a record, as it then is.
func (t *Table[T]) Revise(ctx context.Context, db Engine, change func(key string, v *T) (bool, error)) (int, error) {
	prefix := t.key("r", "")
	var after []byte
	total := 0
	for {
		var n, seen int
		var last []byte
		err := db.Update(ctx, func(tx Tx) error {
			n, seen, last = 0, 0, nil
			type found struct {
				key string
				row row[T]
			}
			var batch []found
			for row, err := range t.rows(tx, prefix, after) {
				if err != nil {
					return err
				}
				batch = append(batch, found{unescape(string(row.at[len(prefix):])), row})
				if len(batch) == reviseBatch {
					break
				}
			}
			for _, f := range batch {
				seen, last = seen+1, f.row.at
				before := t.terms(f.row.value)
				changed, err := change(f.key, &f.row.value)
				if err != nil {
					return err
				}
				if !changed {
					continue
				}
				n++
				if err := t.write(tx, f.key, before, f.row.value); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			return total, err
		}
		total += n
		if seen < reviseBatch {
			return total, nil
		}
		after = append([]byte(nil), last...)
	}
}

// unescape undoes escape.
func unescape(s string) string {
	if strings.IndexByte(s, 1) < 0 {
		return s
	}
	return strings.NewReplacer("\x01\x01", "\x00", "\x01\x02", "\x01").Replace(s)
}
