package cryptoserver_test

import (
	"bytes"
	"errors"
	"slices"
	"testing"

	"kluis/cryptoserver/client"
	"kluis/cryptoserver/control"
	"kluis/cryptoserver/cryptopb"
	"kluis/cryptoserver/envelope"
	"kluis/meter"
)

// TestRewrap: keys move to the active epoch, and what was sealed under them
// opens as before; with their old records too, as long as the epoch is there.
func TestRewrap(t *testing.T) {
	t.Parallel()
	w := worldOn(t, epochs(t))
	m := w.market()
	r := energy(days("2024-03-01", "2024-06-01"), importLow, importIntervals)
	before := w.opened(m.ask(m.new, r))

	// Nothing happens to keys that are under the active epoch already.
	if epoch, out, err := w.as("custodian").Rewrap(t.Context(), m.keys[:1]); err != nil || epoch != 1 || out[0].Err != nil || !bytes.Equal(out[0].Record.Wrapped, m.keys[0].Wrapped) || out[0].Record.MAC != m.keys[0].MAC {
		t.Errorf("to the epoch they are under: %d, %+v, %v", epoch, out, err)
	}

	w.append(control.Entry{Kind: control.ActivateEpoch, Epoch: 2})
	old := slices.Clone(m.keys)
	minted, err := w.as("ingest").Mint(t.Context(), []envelope.KeySpec{{EAN: m.ean, Class: meter.Registers, Month: 700}})
	if err != nil || minted[0].Epoch != 2 {
		t.Fatalf("minted under %d: %v", minted[0].Epoch, err)
	}
	epoch, out, err := w.as("custodian").Rewrap(t.Context(), append(slices.Clone(old), minted...))
	w.must(err)
	if epoch != 2 {
		t.Errorf("to epoch %d", epoch)
	}
	for i := range old {
		rec := out[i].Record
		want := old[i]
		want.Epoch, want.Wrapped, want.MAC = 2, rec.Wrapped, rec.MAC
		if out[i].Err != nil || rec.Message() == nil || !bytes.Equal(rec.Message(), want.Message()) || bytes.Equal(rec.Wrapped, old[i].Wrapped) || rec.MAC == old[i].MAC {
			t.Fatalf("key %d: %+v", i, out[i])
		}
		m.keys[i] = rec
	}
	same := func(name string) {
		t.Helper()
		got := w.opened(m.ask(m.new, r))
		if len(got.Faults) != 0 || len(got.Withheld) != 0 {
			t.Errorf("%s: %v, %v", name, got.Faults, got.Withheld)
		}
		for _, f := range []meter.FieldCode{importLow, importIntervals} {
			values := valuesOf(got, f)
			for d, v := range valuesOf(before, f) {
				if !slices.Equal(values[d], v) {
					t.Fatalf("%s: field %d on %s: %v, want %v", name, f, d, values[d], v)
				}
			}
		}
	}
	same("under the new epoch")
	// The new records are genuine: something is sealed under them.
	if _, err := w.as("ingest").Seal(t.Context(), m.ean, m.keys[:1], []envelope.PlainBlock{func() envelope.PlainBlock {
		b := w.registerBlock(importLow, meter.Day(0))
		for d := day("2024-02-01"); d <= day("2024-06-15"); d++ {
			if d.Month() == m.keys[0].Month {
				b = w.registerBlock(importLow, d)
				if m.keys[0].Class == meter.Intervals {
					b = w.intervalBlock(importIntervals, d, meter.PT15M)
				}
				break
			}
		}
		b.Version = 2
		return b
	}()}); err != nil {
		t.Errorf("sealed under a rewrapped key: %v", err)
	}
	rewrapped := slices.Clone(m.keys)
	m.keys = old
	same("with the old records")

	// The old epoch is given up: old records are of no use, the new ones are.
	w.append(control.Entry{Kind: control.DestroyEpoch, Epoch: 1})
	if got := w.opened(m.ask(m.new, r)); len(got.Series) == 0 || got.Faults[0].Reason != client.Erased || len(got.Faults) != len(m.ask(m.new, r).Units[0].Blocks) {
		t.Errorf("with old records of an epoch given up: %+v", got.Faults)
	}
	m.keys = rewrapped
	same("with the epoch given up")
}

// TestRewrapRefuses: a record that is not what was minted is its own fault,
// and is not shown to the token.
func TestRewrapRefuses(t *testing.T) {
	t.Parallel()
	w := worldOn(t, epochs(t))
	p, neighbour := w.point(meter.Electricity), w.point(meter.Electricity)
	mint := func(p *point, n int) []envelope.KeyRecord {
		var specs []envelope.KeySpec
		for i := range n {
			specs = append(specs, envelope.KeySpec{EAN: p.ean, Class: meter.Registers, Month: meter.Month(640 + i)})
		}
		recs, err := w.as("ingest").Mint(t.Context(), specs)
		w.must(err)
		return recs
	}
	own := mint(p, 12)
	theirs := mint(neighbour, 1)[0]
	w.append(control.Entry{Kind: control.EraseKeys, Cause: control.CauseRequest, Keys: []control.KeyID{own[1].ID}})
	w.append(control.Entry{Kind: control.EraseBefore, Cause: control.CauseRetention, Month: 641})
	w.append(control.Entry{Kind: control.ActivateEpoch, Epoch: 2})
	keys := []envelope.KeyRecord{
		own[0], own[1],
		with(own[2], func(k *envelope.KeyRecord) { k.Wrapped = theirs.Wrapped }),
		with(own[3], func(k *envelope.KeyRecord) { k.EAN = neighbour.ean }),
		with(own[4], func(k *envelope.KeyRecord) { k.MAC[0] ^= 1 }),
		with(own[5], func(k *envelope.KeyRecord) { k.Epoch = 2 }),
		with(own[6], func(k *envelope.KeyRecord) { k.Month++ }),
		with(own[7], func(k *envelope.KeyRecord) { k.Wrapped = k.Wrapped[:39] }),
		with(own[8], func(k *envelope.KeyRecord) { k.Epoch = 77 }),
		with(own[9], func(k *envelope.KeyRecord) { k.MAC = theirs.MAC }),
		own[10], own[11],
	}
	want := []error{client.ErrErased, client.ErrErased, client.ErrDamaged, client.ErrDamaged, client.ErrDamaged, client.ErrDamaged,
		client.ErrDamaged, client.ErrDamaged, client.ErrDamaged, client.ErrDamaged, nil, nil}
	epoch, out, err := w.as("custodian").Rewrap(t.Context(), keys)
	w.must(err)
	for i, o := range out {
		if !errors.Is(o.Err, want[i]) || (o.Err == nil) != (o.Record.Epoch == epoch) {
			t.Errorf("key %d: %+v", i, o)
		}
	}
	if n := w.rotate.keys.Load(); n != 2 {
		t.Errorf("the token was asked to rewrap %d keys, 2 are genuine", n)
	}
	if _, out, err := w.as("custodian").Rewrap(t.Context(), keys[:9]); err != nil || slices.ContainsFunc(out, func(r client.RewrapResult) bool { return r.Err == nil }) {
		t.Errorf("none genuine: %+v, %v", out, err)
	}
	// An active epoch that the token lacks is a matter for another server.
	w.seal.claim(5)
	w.append(control.Entry{Kind: control.ActivateEpoch, Epoch: 5})
	if _, _, err := w.as("custodian").Rewrap(t.Context(), own[10:]); !errors.Is(err, client.ErrUnknownEpoch) || !errors.Is(err, client.ErrUnavailable) {
		t.Errorf("to an epoch the token lacks: %v", err)
	}
	if _, err := w.as("ingest").Mint(t.Context(), []envelope.KeySpec{{EAN: p.ean, Class: meter.Registers, Month: 650}}); !errors.Is(err, client.ErrUnknownEpoch) || !errors.Is(err, client.ErrUnavailable) {
		t.Errorf("minting under an epoch the token lacks: %v", err)
	}
	for _, role := range []string{"rotate", "mint"} {
		if w.counter("kluis_cryptoserver_token_up", "role", role) != 1 {
			t.Errorf("the token of role %s is blamed for it", role)
		}
	}
	for name, n := range map[string]int{"none": 0, "too many": 4001} {
		if _, err := w.raw(w.clientTLS("custodian")).Rewrap(t.Context(), &cryptopb.RewrapRequest{Keys: make([]*cryptopb.DataKey, n)}); reasonOf(err) != cryptopb.ReasonMalformed {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// resealing is a metering point with a month of readings and a new data key for
// it.
func resealing(w *world) (p *market, from, to envelope.KeyRecord, blocks []envelope.SealedBlock) {
	w.t.Helper()
	m := w.market()
	april := days("2024-04-01", "2024-05-01")
	from = m.keys[m.key(envelope.KeySpec{Class: meter.Registers, Month: april.From.Month()})]
	recs, err := w.as("ingest").Mint(w.t.Context(), []envelope.KeySpec{{EAN: m.ean, Class: meter.Registers, Month: april.From.Month()}})
	w.must(err)
	for _, row := range m.rows {
		if m.keys[row.Key].ID == from.ID {
			blocks = append(blocks, row)
		}
	}
	if len(blocks) != 60 {
		w.t.Fatalf("%d blocks", len(blocks))
	}
	return m, from, recs[0], blocks
}

// TestReseal: blocks move to another data key, then the old one is erased, and
// every value is as it was.
func TestReseal(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	m, from, to, blocks := resealing(w)
	r := energy(days("2024-04-01", "2024-05-01"), importLow, importNormal, importIntervals)
	before := w.opened(m.ask(m.new, r))
	w.open.opened()
	w.seal.plain = nil
	out, err := w.as("custodian").Reseal(t.Context(), from, to, blocks)
	w.must(err)
	if len(out) != len(blocks) {
		t.Fatalf("%d results", len(out))
	}
	ivs := map[string]bool{}
	for i, o := range out {
		ct, err := envelope.ParseCiphertext(o.Ciphertext)
		if o.Err != nil || err != nil || ct.KeyID != to.ID {
			t.Fatalf("block %d: %v, %v", i, o.Err, err)
		}
		ivs[string(ct.IV)] = true
		for j := range m.rows {
			if row := &m.rows[j]; row.Field == blocks[i].Field && row.Day == blocks[i].Day && row.Version == blocks[i].Version {
				row.Ciphertext = o.Ciphertext
			}
		}
	}
	if len(ivs) != len(blocks) {
		t.Errorf("%d IVs for %d blocks", len(ivs), len(blocks))
	}
	// No plaintext stays behind.
	w.open.mu.Lock()
	outs := w.open.outs
	w.open.mu.Unlock()
	if len(outs) != len(blocks) || len(w.seal.plain) != len(blocks) {
		t.Errorf("%d opened and %d sealed of %d", len(outs), len(w.seal.plain), len(blocks))
	}
	for _, p := range append(outs, w.seal.plain...) {
		if len(p) == 0 || !bytes.Equal(p, make([]byte, len(p))) {
			t.Fatal("plaintext is still there")
		}
	}
	m.keys[slices.IndexFunc(m.keys, func(k envelope.KeyRecord) bool { return k.ID == from.ID })] = to
	w.append(control.Entry{Kind: control.EraseKeys, Cause: control.CauseReplaced, Keys: []control.KeyID{from.ID}})
	got := w.opened(m.ask(m.new, r))
	if len(got.Faults) != 0 || len(got.Withheld) != 0 {
		t.Fatalf("after the old key was erased: %v, %v", got.Faults, got.Withheld)
	}
	for _, f := range r.Fields {
		values := valuesOf(got, f)
		for d, v := range valuesOf(before, f) {
			if !slices.Equal(values[d], v) {
				t.Fatalf("field %d on %s: %v, want %v", f, d, values[d], v)
			}
		}
	}
}

// TestResealRefusesKeys: only from a genuine key to another genuine one of the
// same metering point, class, month and occupancy, neither of them erased.
func TestResealRefusesKeys(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	m, from, to, blocks := resealing(w)
	mint := func(s envelope.KeySpec) envelope.KeyRecord {
		recs, err := w.as("ingest").Mint(t.Context(), []envelope.KeySpec{s})
		w.must(err)
		return recs[0]
	}
	spec := envelope.KeySpec{EAN: m.ean, Class: meter.Registers, Month: from.Month}
	theirs := spec
	theirs.EAN = w.point(meter.Electricity).ean
	month, class, occupancy := spec, spec, spec
	month.Month++
	class.Class = meter.Intervals
	occupancy.Occupancy = day("2023-01-01")
	gone := mint(spec)
	w.append(control.Entry{Kind: control.EraseKeys, Cause: control.CauseRequest, Keys: []control.KeyID{gone.ID}})
	w.open.opened()
	before := w.seal.sealed.Load()
	neighbour := mint(theirs)
	for _, c := range []struct {
		name     string
		from, to envelope.KeyRecord
		want     error
	}{
		{"to a neighbour's key", from, neighbour, client.ErrKeyRecord},
		{"to a neighbour's key, relabelled", from, with(neighbour, func(k *envelope.KeyRecord) { k.EAN = m.ean }), client.ErrKeyRecord},
		{"to a neighbour's wrapped key", from, with(to, func(k *envelope.KeyRecord) { k.Wrapped = neighbour.Wrapped }), client.ErrKeyRecord},
		{"to a key without a MAC", from, with(to, func(k *envelope.KeyRecord) { k.MAC = [32]byte{} }), client.ErrKeyRecord},
		{"from a key without a MAC", with(from, func(k *envelope.KeyRecord) { k.MAC = [32]byte{} }), to, client.ErrKeyRecord},
		{"to a key of another month", from, mint(month), client.ErrKeyRecord},
		{"to a key of another class", from, mint(class), client.ErrKeyRecord},
		{"to a key of another occupancy", from, mint(occupancy), client.ErrKeyRecord},
		{"to itself", from, from, client.ErrKeyRecord},
		{"to an erased key", from, gone, client.ErrErased},
		{"from an erased key", gone, to, client.ErrErased},
	} {
		if _, err := w.as("custodian").Reseal(t.Context(), c.from, c.to, blocks); !errors.Is(err, c.want) || !errors.Is(err, client.ErrRefused) {
			t.Errorf("%s: %v", c.name, err)
		}
	}
	if n := w.open.opened(); n != 0 || w.seal.sealed.Load() != before {
		t.Errorf("%d blocks were opened all the same, %d sealed", n, w.seal.sealed.Load()-before)
	}
}

// TestResealRefusesBlocks: a block that is not what it should be is its own
// fault; nothing is made of it.
func TestResealRefusesBlocks(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	m, from, to, blocks := resealing(w)
	n := w.electricity(m.old, m.new, [16]byte{2})
	n.store(w.registerBlock(importLow, blocks[0].Day))
	for _, c := range []struct {
		name   string
		change func(b *envelope.SealedBlock)
		token  bool // it is asked; otherwise the attempt ends before it
	}{
		{"of another day", func(b *envelope.SealedBlock) { b.Ciphertext = bytes.Clone(blocks[4].Ciphertext) }, true},
		{"of another field", func(b *envelope.SealedBlock) { b.Field = importNormal; b.Version = 7 }, true},
		{"another version", func(b *envelope.SealedBlock) { b.Version = 2 }, true},
		{"no version", func(b *envelope.SealedBlock) { b.Version = 0 }, false},
		{"a day outside of the month", func(b *envelope.SealedBlock) { b.Day = day("2024-05-01") }, false},
		{"the day before the month", func(b *envelope.SealedBlock) { b.Day = day("2024-03-31") }, false},
		{"a field of another class", func(b *envelope.SealedBlock) { b.Field = importIntervals }, false},
		{"an unknown field", func(b *envelope.SealedBlock) { b.Field = 999 }, false},
		{"another resolution", func(b *envelope.SealedBlock) { b.Resolution = meter.PT15M }, false},
		{"a neighbour's", func(b *envelope.SealedBlock) { b.Ciphertext = bytes.Clone(n.rows[0].Ciphertext) }, false},
		{"a neighbour's under this key's id", func(b *envelope.SealedBlock) {
			b.Ciphertext = bytes.Clone(n.rows[0].Ciphertext)
			copy(b.Ciphertext[4:], from.ID[:])
		}, true},
		{"a bit of it", func(b *envelope.SealedBlock) { b.Ciphertext[len(b.Ciphertext)-1] ^= 1 }, true},
		{"empty", func(b *envelope.SealedBlock) { b.Ciphertext = nil }, false},
		{"already under the other key's id", func(b *envelope.SealedBlock) { copy(b.Ciphertext[4:], to.ID[:]) }, false},
	} {
		few := slices.Clone(blocks[:3])
		for i := range few {
			few[i].Ciphertext = bytes.Clone(few[i].Ciphertext)
		}
		c.change(&few[1])
		w.open.opened()
		out, err := w.as("custodian").Reseal(t.Context(), from, to, few)
		if err != nil {
			t.Errorf("%s: %v", c.name, err)
			continue
		}
		if out[0].Err != nil || out[2].Err != nil || !errors.Is(out[1].Err, client.ErrDamaged) || out[1].Ciphertext != nil {
			t.Errorf("%s: %v, %v, %v", c.name, out[0].Err, out[1].Err, out[2].Err)
		}
		want := 2
		if c.token {
			want = 3
		}
		if n := w.open.opened(); n != want {
			t.Errorf("%s: the token was asked to open %d of 3 blocks, want %d", c.name, n, want)
		}
	}

	// What is named twice, or too much.
	api := w.raw(w.clientTLS("custodian"))
	for name, bs := range map[string][]*cryptopb.SealedBlock{
		"none":                   nil,
		"too many":               make([]*cryptopb.SealedBlock, 20001),
		"the same version twice": {{Field: 1, Day: 1, Version: 1}, {Field: 1, Day: 1, Version: 1}},
	} {
		if _, err := api.Reseal(t.Context(), &cryptopb.ResealRequest{Ean: uint64(m.ean.Int64()), Blocks: bs}); reasonOf(err) != cryptopb.ReasonMalformed {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := api.Reseal(t.Context(), &cryptopb.ResealRequest{Ean: uint64(m.ean.Int64()), Blocks: []*cryptopb.SealedBlock{{}}}); reasonOf(err) != cryptopb.ReasonMalformed {
		t.Errorf("no keys: %v", err)
	}

	// The same blocks again and again are bounded, as sealing them is.
	var err error
	for range 40 {
		if _, err = w.as("custodian").Reseal(t.Context(), from, to, blocks[10:11]); err != nil {
			break
		}
	}
	var e *client.Error
	if !errors.As(err, &e) || e.Reason != cryptopb.ReasonSealedTooOften {
		t.Errorf("again and again: %v", err)
	}
	// Nor does that stop an import, or an import this.
	seal := func() error {
		_, err := w.as("ingest").Seal(t.Context(), m.ean, []envelope.KeyRecord{from}, []envelope.PlainBlock{w.registerBlock(blocks[10].Field, blocks[10].Day)})
		return err
	}
	w.must(seal())
	for err = nil; err == nil; {
		_, err = w.as("ingest").Seal(t.Context(), m.ean, []envelope.KeyRecord{from}, []envelope.PlainBlock{w.registerBlock(blocks[11].Field, blocks[11].Day)})
	}
	if reasonOfClient(err) != cryptopb.ReasonSealedTooOften {
		t.Errorf("sealed again and again: %v", err)
	}
	_, err = w.as("custodian").Reseal(t.Context(), from, to, blocks[11:12])
	w.must(err)
}
