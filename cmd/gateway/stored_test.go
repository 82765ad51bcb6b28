package main

import (
	"testing"

	"kluis/internal/audit"
	"kluis/meter"
	"kluis/openapi/client"
)

// What was altered in the database does not open; that is said, the day is
// null, and the days beside it are as they were.
func TestStoredBlocksAltered(t *testing.T) {
	t.Parallel()
	w := newWorld(t, options{})
	neighbour := w.customer(1, w.b)
	w.fill(neighbour)
	days := w.days()
	bad := days.From + 9
	next := bad + 1
	low, normal := w.field("import_low"), w.field("import_normal")
	const block = `UPDATE sealed_block SET `
	const where = ` WHERE ean = $1 AND field = $2 AND day = $3`
	all := func(name, sql string, args ...any) (string, func(meter.EAN), int) {
		return name, func(e meter.EAN) { w.sql(sql, append([]any{e.Int64(), int64(low), bad.String()}, args...)...) }, 1
	}
	type attack struct {
		name    string
		forge   func(meter.EAN)
		nulls   int
		damaged bool
	}
	var attacks []attack
	add := func(name string, forge func(meter.EAN), nulls int) {
		attacks = append(attacks, attack{name, forge, nulls, true})
	}
	add(all("a bit of the ciphertext", block+`ciphertext = set_bit(ciphertext, 8 * (octet_length(ciphertext) - 20), 1 - get_bit(ciphertext, 8 * (octet_length(ciphertext) - 20)))`+where))
	add(all("a bit of the tag", block+`ciphertext = set_bit(ciphertext, 8 * octet_length(ciphertext) - 1, 1 - get_bit(ciphertext, 8 * octet_length(ciphertext) - 1))`+where))
	add(all("cut short", block+`ciphertext = substr(ciphertext, 1, octet_length(ciphertext) - 1)`+where))
	add(all("one byte", block+`ciphertext = '\x00'`+where))
	add(all("another day's", block+`ciphertext = (SELECT s.ciphertext FROM sealed_block s WHERE s.ean = $1 AND s.field = $2 AND s.day = $4)`+where, next.String()))
	add(all("another field's", block+`ciphertext = (SELECT s.ciphertext FROM sealed_block s WHERE s.ean = $1 AND s.field = $4 AND s.day = $3)`+where, int64(normal)))
	add(all("another customer's", block+`ciphertext = (SELECT s.ciphertext FROM sealed_block s WHERE s.ean = $4 AND s.field = $2 AND s.day = $3)`+where, neighbour.Int64()))
	add(all("version", block+`version = 2`+where))
	add(all("resolution", block+`resolution = 1`+where))
	add(all("key of another month", block+`key_id = (SELECT key_id FROM data_key WHERE ean = $1 AND class = 1 AND month = $4)`+where, int64(w.month+1)))
	add(all("key of another class", block+`key_id = (SELECT key_id FROM data_key WHERE ean = $1 AND class = 2 AND month = $4)`+where, int64(w.month)))
	add(all("key of nobody", block+`key_id = gen_random_uuid()`+where))
	swap := func(e meter.EAN) {
		w.sql(`UPDATE data_key k SET wrapped = n.wrapped FROM data_key n WHERE k.ean = $1 AND n.ean = $2 AND k.class = n.class AND k.month = n.month`, e.Int64(), neighbour.Int64())
	}
	add("data keys swapped with the neighbour's", swap, days.Len()+1)
	attacks = append(attacks, attack{"a row deleted: a gap to the reader, found by the audit", func(e meter.EAN) {
		w.sql(`DELETE FROM sealed_block`+where, e.Int64(), int64(low), bad.String())
	}, 1, false})

	for i, a := range attacks {
		e := w.customer(10+i, w.a)
		w.fill(e)
		a.forge(e)
		got := w.answerOf(w.get(w.a, w.path(e, "fields", "import_low")))
		if len(got.Series) != 1 || got.Series[0].DeliveredCount != got.Series[0].ExpectedCount-a.nulls {
			t.Errorf("%s: %+v", a.name, got.Series)
			continue
		}
		for j, d := range got.Series[0].Days {
			at := days.From + meter.Day(j)
			switch v := d.Values[0]; {
			case v == nil && at != bad && a.nulls == 1:
				t.Errorf("%s: %s is null", a.name, at)
			case v != nil && (at == bad || a.nulls > 1):
				t.Errorf("%s: %s is %s", a.name, at, *v)
			case v != nil && *v != text(read(low, at)):
				t.Errorf("%s: %s is %s", a.name, at, *v)
			}
		}
		damaged := len(got.Withheld) == 1 && got.Withheld[0].Reason == client.DAMAGED && got.Withheld[0].Field == "import_low" &&
			(a.nulls > 1 || got.Withheld[0].From.String() == bad.String() && got.Withheld[0].To.String() == next.String())
		if damaged != a.damaged || !a.damaged && len(got.Withheld) != 0 {
			t.Errorf("%s: withheld %+v", a.name, got.Withheld)
		}
		recs := w.records()
		if last := recs[len(recs)-1]; last.EAN != e || (last.Outcome == audit.Partly) != a.damaged {
			t.Errorf("%s: record %+v", a.name, last)
		}
	}
}
