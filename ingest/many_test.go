package ingest

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"kluis/authz"
	"kluis/meter"
)

// street is a desk with metering points side by side.
func street(t *testing.T, n int) (*desk, []Point) {
	t.Helper()
	d := newDesk(t)
	var points []Point
	for i := range n {
		digits := fmt.Sprintf("8716872000%07d", i)
		for check := range 10 {
			if e, err := meter.ParseEAN(fmt.Sprintf("%s%d", digits, check)); err == nil {
				d.register(t, e)
				points = append(points, Point{EAN: e, Blocks: d.registers(meter.Value(i), meter.Value(i+1))[0].Blocks})
			}
		}
	}
	if len(points) != n {
		t.Fatalf("%d metering points", len(points))
	}
	return d, points
}

func TestMany(t *testing.T) {
	t.Parallel()
	d, points := street(t, 7)
	backwards := slices.Clone(points)
	slices.Reverse(backwards)
	told := 0
	d.ledger.commit = []error{nil, ErrConflict, nil} // another writer once
	got, err := d.Many(t.Context(), slices.Values(backwards), Options{AtOnce: 3, Progress: func(done, _ int) { told = done }})
	if want := (Totals{Points: 7, Blocks: 14, Stored: 14}); err != nil || got != want || told != 14 {
		t.Fatalf("%+v, told %d, %v", got, told, err)
	}
	if len(d.ledger.rows) != 14 || d.ledger.calls != 4 {
		t.Errorf("%d rows in %d transactions", len(d.ledger.rows), d.ledger.calls)
	}
	// Of each part in ascending order; the keys of a part were made together.
	descents := 0
	for i, r := range d.ledger.rows[1:] {
		if r.EAN.Int64() < d.ledger.rows[i].EAN.Int64() {
			descents++
		}
	}
	if descents > 2 {
		t.Errorf("%d times back to a lower metering point", descents)
	}
	got, err = d.Many(t.Context(), slices.Values(points), Options{AtOnce: 2})
	if want := (Totals{Points: 7, Blocks: 14, Unchanged: 14}); err != nil || got != want || len(d.ledger.rows) != 14 {
		t.Errorf("again: %+v, %v", got, err)
	}
	// Each metering point got its own.
	for i, p := range points {
		for _, r := range d.ledger.rows {
			if r.EAN == p.EAN && r.Day == d.day && !strings.Contains(fmt.Sprint(r.Ciphertext), fmt.Sprint(mustAppend(t, d, points[i]))[1:10]) {
				t.Errorf("%s has another's", p.EAN)
			}
		}
	}
	if got, err := d.Many(t.Context(), slices.Values([]Point(nil)), Options{}); err != nil || got != (Totals{}) {
		t.Errorf("of none: %+v, %v", got, err)
	}
}

// mustAppend is what press makes of a point's first block.
func mustAppend(t *testing.T, d *desk, p Point) []byte {
	t.Helper()
	f, _ := d.press.p.FieldByCode(p.Blocks[0].Field)
	b, err := meter.AppendBlock(nil, &p.Blocks[0].Block, f.Class, d.press.loc)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// TestManyFails: what was stored before is whole parts; to begin anew ends well.
func TestManyFails(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		spoil func(d *desk, points []Point) context.Context
		want  error
	}{
		"the database": {func(d *desk, _ []Point) context.Context {
			d.ledger.commit = []error{nil, errors.New("no room"), errors.New("no room"), errors.New("no room")}
			return t.Context()
		}, nil},
		"an unknown metering point": {func(d *desk, points []Point) context.Context {
			delete(d.ledger.files, points[5].EAN)
			return t.Context()
		}, ErrUnknownMeteringPoint},
		"another's legal file": {func(d *desk, points []Point) context.Context {
			d.ledger.files[points[5].EAN] = d.ledger.files[points[1].EAN]
			return t.Context()
		}, authz.ErrSeal},
		"the end of the context": {func(*desk, []Point) context.Context {
			ctx, cancel := context.WithCancel(t.Context())
			cancel()
			return ctx
		}, context.Canceled},
	} {
		d, points := street(t, 8)
		files := map[meter.EAN]authz.StoredFile{}
		for e, f := range d.ledger.files {
			files[e] = f
		}
		got, err := d.Many(c.spoil(d, points), slices.Values(points), Options{AtOnce: 2})
		if err == nil || c.want != nil && !errors.Is(err, c.want) {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if strings.Contains(err.Error(), points[5].EAN.String()) {
			t.Errorf("%s: the error names a metering point: %v", name, err)
		}
		if len(d.ledger.rows)%4 != 0 || len(d.ledger.rows) > 16 || got.Stored > len(d.ledger.rows) {
			t.Errorf("%s: %d rows, %+v", name, len(d.ledger.rows), got)
		}
		d.ledger.files, d.ledger.commit = files, nil
		if _, err := d.Many(t.Context(), slices.Values(points), Options{AtOnce: 2}); err != nil || len(d.ledger.rows) != 16 {
			t.Errorf("%s, and once more: %d rows, %v", name, len(d.ledger.rows), err)
		}
	}
}
