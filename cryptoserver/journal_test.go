package cryptoserver_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"kluis/authz"
	"kluis/cryptoserver"
	"kluis/cryptoserver/checkpoint"
	"kluis/cryptoserver/client"
	"kluis/cryptoserver/control"
	"kluis/cryptoserver/cryptopb"
	"kluis/cryptoserver/envelope"
	"kluis/cryptoserver/journal"
	"kluis/meter"
)

// audit reads the journal of this boot as the auditor does, and checks its chain.
func (w *world) audit() []envelope.Entry {
	w.t.Helper()
	st := w.as("gateway").Status(w.t.Context())[0]
	w.must(st.Err)
	chain := envelope.Chain{ServerID: st.ServerID, BootID: st.BootID}
	var out []envelope.Entry
	for {
		got, err := w.as("auditor").ReadJournal(w.t.Context(), w.address, st.BootID, chain.Sequence)
		w.must(err)
		if len(got.Entries) == 0 {
			if b := got.Boots[len(got.Boots)-1]; b.BootID != st.BootID || b.Last != chain.Sequence || b.Ended || b.Torn {
				w.t.Errorf("read to %d: %+v", chain.Sequence, b)
			}
			return out
		}
		for _, b := range got.Entries {
			e, err := chain.Next(b)
			w.must(err)
			out = append(out, e)
		}
	}
}

// TestJournal: everything that is opened and sealed is in the journal, exactly
// as it left, and nothing else.
func TestJournal(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	m := w.market()
	before := len(w.audit())
	news := func(what string, n int) []envelope.Entry {
		t.Helper()
		all := w.audit()
		if len(all) != before+n {
			t.Fatalf("%s: %d entries more, want %d", what, len(all)-before, n)
		}
		all, before = all[before:], len(all)
		return all
	}
	event := func(what string, want envelope.SealEvent) {
		t.Helper()
		got := news(what, 1)[0].SealEvent
		if got == nil {
			t.Fatalf("%s: a receipt", what)
		}
		want.Link, want.At = got.Link, got.At
		if !slices.Equal(got.Encode(), want.Encode()) {
			t.Errorf("%s:\n got %+v\nwant %+v", what, *got, want)
		}
	}

	// Two metering points in one call, and one that the caller has nothing to do with.
	q := m.ask(m.new, energy(days("2024-04-01", "2024-04-03"), importLow))
	second, foreign := q.Units[0], q.Units[0]
	second.InteractionID[0]++
	foreign.LegalFile = w.point(meter.Electricity).file
	news("a legal file", 1)
	foreign.Keys, foreign.Blocks = nil, nil
	q.Units = append(q.Units, second, foreign)
	got, err := w.as("gateway").Open(t.Context(), q)
	w.must(err)
	for i, e := range news("open", 2) {
		if e.Receipt == nil || !bytes.Equal(e.Receipt.Encode(), got[i].Receipt) || e.Receipt.InteractionID != q.Units[i].InteractionID || e.Receipt.Opened != 3 {
			t.Errorf("receipt %d: %+v", i, e.Receipt)
		}
	}
	if len(got[2].Receipt) != 0 {
		t.Error("a receipt of what was not opened")
	}

	d := day("2024-05-03")
	first := w.registerBlock(importLow, d)
	other := w.registerBlock(importNormal, d)
	first.Version, other.Version = 3, 2
	sealed := m.store(first, other)
	event("seal", envelope.SealEvent{Client: "ingest", Kind: envelope.BlocksSealed, EAN: m.ean, Blocks: []envelope.SealedDigest{
		{Field: importLow, Day: d, Version: 3, Digest: envelope.CiphertextDigest(sealed[0].Ciphertext)},
		{Field: importNormal, Day: d, Version: 2, Digest: envelope.CiphertextDigest(sealed[1].Ciphertext)},
	}})

	spec := envelope.KeySpec{EAN: m.ean, Class: meter.Registers, Month: d.Month()}
	to, err := w.as("ingest").Mint(t.Context(), []envelope.KeySpec{spec})
	w.must(err)
	rows := slices.Clone(m.rows[len(m.rows)-2:])
	rows[1].Ciphertext = slices.Clone(rows[1].Ciphertext)
	rows[1].Ciphertext[40] ^= 1 // damaged: not resealed, so not there
	resealed, err := w.as("custodian").Reseal(t.Context(), m.keys[m.key(spec)], to[0], rows)
	w.must(err)
	event("reseal", envelope.SealEvent{Client: "custodian", Kind: envelope.BlocksResealed, EAN: m.ean, Blocks: []envelope.SealedDigest{
		{Field: importLow, Day: d, Version: 3, Digest: envelope.CiphertextDigest(resealed[0].Ciphertext)},
	}})
	if _, err := w.as("custodian").Reseal(t.Context(), m.keys[m.key(spec)], to[0], rows[1:]); err != nil {
		t.Fatal(err)
	}
	news("nothing resealed", 0)

	keys, err := authz.NewSealKeys(w.hsm.SealKeys...)
	w.must(err)
	m.step(authz.SetOptOut{Days: days("2024-06-01", "2024-06-02")})
	file, err := keys.LegalFile(m.file)
	w.must(err)
	event("step", envelope.SealEvent{Client: "registrar", Kind: envelope.LegalFile, EAN: m.ean, Version: file.Version(), Digest: file.Digest()})
	p := w.supplier("871234500777", "Third Energy")
	record, err := keys.Supplier(p.record)
	w.must(err)
	event("supplier", envelope.SealEvent{Client: "registrar", Kind: envelope.SupplierRecord, GLN: p.gln, Version: 1, Digest: record.Digest()})

	w.append(control.Entry{Kind: control.EraseKeys, Cause: control.CauseRequest, Keys: []control.KeyID{{1}}})
	_, signed := w.feed.Relay()
	head, err := control.OpenHead(signed, keys)
	w.must(err)
	event("control", envelope.SealEvent{Client: "custodian", Kind: envelope.ControlHead, Version: head.Sequence, Digest: head.Hash})

	// What opens and seals nothing, and what is refused.
	w.advance(time.Second) // a heartbeat
	w.token(p)
	_, _, err = w.as("custodian").Rewrap(t.Context(), m.keys[:1])
	w.must(err)
	if _, err := w.as("registrar").SealStep(t.Context(), m.file, authz.Register{EAN: m.ean, Commodity: meter.Gas}); err == nil {
		t.Error("no error")
	}
	q.AccessToken = "x"
	if _, err := w.as("gateway").Open(t.Context(), q); err == nil {
		t.Error("no error")
	}
	news("nothing", 0)
}

// TestNotRecorded: what cannot be recorded does not leave, the server says so,
// and goes on when there is room again.
func TestNotRecorded(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	m := w.market()
	w.advance(time.Second)
	_, signed := w.feed.Relay()
	keys, err := authz.NewSealKeys(w.hsm.SealKeys...)
	w.must(err)
	head, err := control.OpenHead(signed, keys)
	w.must(err)
	q := m.ask(m.new, energy(days("2024-04-01", "2024-04-03"), importLow))
	spec := envelope.KeySpec{EAN: m.ean, Class: meter.Registers, Month: day("2024-05-03").Month()}
	key := m.keys[m.key(spec)]
	to, err := w.as("ingest").Mint(t.Context(), []envelope.KeySpec{spec})
	w.must(err)
	row := m.rows[slices.IndexFunc(m.rows, func(r envelope.SealedBlock) bool { return r.Day == day("2024-05-03") && r.Field == importLow })]
	block := w.registerBlock(importLow, row.Day)
	erase := control.Entry{Kind: control.EraseKeys, Cause: control.CauseRequest, At: w.clock.now(), Keys: []control.KeyID{{1}}}
	entry, err := erase.Encode()
	w.must(err)

	w.mayAsk(m.new)
	portal := w.portal()
	suspending := w.supervisorToken(portal, m.new, true)
	who, _ := m.identity("2023-01-01", 1, livingAt(t, "Xantippe Overdam", "1234AB", "17", ""))
	view := w.viewToken(portal, authz.Agent, m.point)
	calls := map[string]func() (left any, err error){
		"SealIdentity": func() (any, error) {
			return w.as("ingest").SealIdentities(t.Context(), []envelope.PlainIdentity{{Key: who.Key, Version: 2, Person: livingAt(t, "Xantippe Overdam", "1234AB", "17", "")}})
		},
		"OpenIdentity": func() (any, error) {
			return w.as("gateway").OpenIdentities(t.Context(), client.IdentityRequest{AccessToken: view, SupplierRecord: portal.record, Profile: w.profile.Digest(),
				Units: []client.IdentityUnit{{EAN: m.ean, LegalFile: m.file, Identity: who}}})
		},
		"Open": func() (any, error) { return w.as("gateway").Open(t.Context(), q) },
		"Seal": func() (any, error) {
			return w.as("ingest").Seal(t.Context(), m.ean, []envelope.KeyRecord{key}, []envelope.PlainBlock{block})
		},
		"Reseal": func() (any, error) {
			return w.as("custodian").Reseal(t.Context(), key, to[0], []envelope.SealedBlock{row})
		},
		"SealStep": func() (any, error) {
			return w.as("registrar").SealStep(t.Context(), m.file, authz.SetOptOut{Days: days("2024-06-01", "2024-06-02")})
		},
		"TakeStep":         func() (any, error) { return m.take(w.consentToken(m.new), m.new.record, request(m.new, 0x21)) },
		"TakeSupplierStep": func() (any, error) { return w.switchSupplier(suspending, portal.record, m.new.record, true) },
		"SealSupplier":     func() (any, error) { return w.as("registrar").SealSupplier(t.Context(), nil, m.new.facts) },
		"SignControl":      func() (any, error) { return w.as("custodian").SignControl(t.Context(), head, entry) },
	}
	n := len(w.audit())
	recovered := func() {
		t.Helper()
		w.journal.full.Store(false)
		for _, service := range []string{"open", "seal", "sealkey", ""} {
			eventually(t, "serving "+service, func() bool { return w.serves(service) })
		}
	}
	for name, call := range calls {
		// It is found out when the entry is written: the work was done.
		w.journal.full.Store(true)
		left, err := call()
		if !errors.Is(err, client.ErrUnavailable) || errors.Is(err, client.ErrRefused) {
			t.Errorf("%s: %v", name, err)
		}
		if w.counter("kluis_cryptoserver_refusals_total", "method", name, "reason", string(cryptopb.ReasonNotRecorded)) == 0 {
			t.Errorf("%s: refused for another reason", name)
		}
		if s := fmt.Sprint(left); s != "[]" && s != "<nil>" {
			t.Errorf("%s: something left: %s", name, s)
		}
		for _, service := range []string{"open", "seal", "sealkey", ""} {
			if w.serves(service) {
				t.Errorf("after %s: serving %q", name, service)
			}
		}
		for _, service := range []string{"mint", "rotate", "sign"} {
			if !w.serves(service) {
				t.Errorf("after %s: %q is not served", name, service)
			}
		}
		recovered()
	}

	// Known to be full: the tokens are not asked.
	w.journal.full.Store(true)
	if _, err := calls["Reseal"](); !errors.Is(err, client.ErrNotRecorded) || !errors.Is(err, client.ErrUnavailable) || errors.Is(err, client.ErrRefused) {
		t.Errorf("what a client is told: %v", err)
	}
	w.open.opened()
	sealed := w.seal.sealed.Load()
	raw := w.raw(w.clientTLS("gateway"))
	if _, err := raw.Open(t.Context(), wire(t, w, q)); reasonOf(err) != cryptopb.ReasonNotRecorded {
		t.Errorf("%v", err)
	}
	if n := w.open.opened(); n != 0 || w.seal.sealed.Load() != sealed {
		t.Errorf("the token opened %d blocks, sealed %d", n, w.seal.sealed.Load()-sealed)
	}
	// The auditor still reads, and what belongs to no opening goes on.
	if got := len(w.audit()); got != n {
		t.Errorf("%d entries, %d before", got, n)
	}
	w.token(m.new)
	recovered()
	for name, call := range calls {
		if _, err := call(); err != nil {
			t.Errorf("%s with room again: %v", name, err)
		}
	}
	if got := len(w.audit()); got != n+len(calls) {
		t.Errorf("%d entries more", got-n)
	}
	log := w.log.String()
	if !strings.Contains(log, "nothing is opened or sealed") || !strings.Contains(log, "written again") {
		t.Error("the log does not say so")
	}
	if w.counter("kluis_cryptoserver_journal_bytes") == 0 {
		t.Error("no metric of its size")
	}
}

// wire is a request as the client sends it, for a server that says it does not
// serve, which the client would not ask.
func wire(t *testing.T, w *world, q client.OpenRequest) *cryptopb.OpenRequest {
	t.Helper()
	return &cryptopb.OpenRequest{
		AccessToken: q.AccessToken, SupplierRecord: q.SupplierRecord, ProfileDigest: q.Profile[:],
		Units: []*cryptopb.OpenUnit{{
			LegalFile: q.Units[0].LegalFile, InteractionId: make([]byte, 16), Purpose: uint32(q.Units[0].Request.Purpose),
			FromDay: int32(q.Units[0].Request.Days.From), ToDay: int32(q.Units[0].Request.Days.To), Fields: []uint32{uint32(importLow)},
		}},
	}
}

func TestReadJournal(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	n := uint64(len(w.audit()))
	auditor := w.as("auditor")
	list, err := auditor.ReadJournal(t.Context(), w.address, [16]byte{}, 0)
	if err != nil || len(list.Boots) != 1 || len(list.Entries) != 0 || list.Boots[0].Last != n {
		t.Fatalf("%+v, %v", list, err)
	}
	boot := list.Boots[0].BootID
	for name, try := range map[string]func() error{
		"unknown boot":  func() error { _, err := auditor.ReadJournal(t.Context(), w.address, [16]byte{9}, 0); return err },
		"beyond it":     func() error { _, err := auditor.ReadJournal(t.Context(), w.address, boot, n+1); return err },
		"half a boot":   func() error { return readJournal(w, boot[:8]) },
		"twice a boot":  func() error { return readJournal(w, append(boot[:], boot[:]...)) },
		"as no auditor": func() error { _, err := w.as("gateway").ReadJournal(t.Context(), w.address, boot, 0); return err },
	} {
		if err := try(); !errors.Is(err, client.ErrRefused) && reasonOf(err) != cryptopb.ReasonMalformed {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := auditor.ReadJournal(t.Context(), "127.0.0.1:1", boot, 0); err == nil {
		t.Error("from a server that is not configured")
	}
	minter := newWorld(t, func(w *world, c *cryptoserver.Config) {
		c.Tokens, c.Journal, w.noFeed = cryptoserver.Tokens{Mint: c.Tokens.Mint}, nil, true
	})
	if _, err := minter.as("auditor").ReadJournal(t.Context(), minter.address, [16]byte{}, 0); !errors.Is(err, client.ErrRefused) {
		t.Errorf("from a server that opens and seals nothing: %v", err)
	}
}

func readJournal(w *world, boot []byte) error {
	_, err := w.raw(w.clientTLS("auditor")).ReadJournal(w.t.Context(), &cryptopb.ReadJournalRequest{BootId: boot})
	return err
}

// TestSignCheckpoint: the head of the log is signed with the pinned key and the
// server's time; never one of a log that was cut or rewritten.
func TestSignCheckpoint(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	auditor := w.as("auditor")
	const origin = "kluis.example/audit"
	sign := func(size uint64, root byte) (checkpoint.Checkpoint, error) {
		t.Helper()
		note, err := auditor.SignCheckpoint(t.Context(), origin, size, [32]byte{root})
		if err != nil {
			return checkpoint.Checkpoint{}, err
		}
		return checkpoint.Open(note, origin, w.hsm.SealKeys...)
	}
	want := func(size uint64, root byte) {
		t.Helper()
		got, err := sign(size, root)
		if err != nil || got != (checkpoint.Checkpoint{Origin: origin, Size: size, Root: [32]byte{root}, At: w.clock.now()}) {
			t.Errorf("%+v, %v", got, err)
		}
	}
	want(10, 1)
	w.clock.advance(time.Second)
	want(10, 1)
	want(12, 2)
	for name, try := range map[string][2]uint64{"smaller": {11, 3}, "as before": {10, 1}, "empty": {0, 0}, "rewritten": {12, 3}} {
		if _, err := sign(try[0], byte(try[1])); !errors.Is(err, client.ErrCheckpointFork) {
			t.Errorf("%s: %v", name, err)
		}
	}
	want(12, 2)
	want(13, 4)
	if !strings.Contains(w.log.String(), "somebody cut or rewrote it") || w.counter("kluis_cryptoserver_refusals_total", "method", "SignCheckpoint", "reason", string(cryptopb.ReasonCheckpointFork)) != 4 {
		t.Error("neither log nor metric tell")
	}

	raw := w.raw(w.clientTLS("auditor"))
	for name, req := range map[string]*cryptopb.SignCheckpointRequest{
		"no origin": {Size: 1, Root: make([]byte, 32)}, "a long one": {Origin: strings.Repeat("a", 65), Root: make([]byte, 32)},
		"two lines": {Origin: "a\nb", Root: make([]byte, 32)}, "root": {Origin: "a", Root: make([]byte, 31)}, "size": {Origin: "a", Size: 1<<62 + 1, Root: make([]byte, 32)},
	} {
		if _, err := raw.SignCheckpoint(t.Context(), req); reasonOf(err) != cryptopb.ReasonMalformed {
			t.Errorf("%s: %v", name, err)
		}
	}
	// Another log is another, and there are not many.
	for i := range 15 {
		if _, err := auditor.SignCheckpoint(t.Context(), fmt.Sprint("log-", i), 1, [32]byte{}); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := auditor.SignCheckpoint(t.Context(), "log-16", 1, [32]byte{}); !errors.Is(err, client.ErrRefused) {
		t.Errorf("one log too many: %v", err)
	}
	want(14, 5)
}

// TestDiskTamperedWith: whoever has the server's disk can rewrite its journal
// with good checksums, and is found out by whoever has read a part of it before,
// or reads on.
func TestDiskTamperedWith(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "journal")
	var boot [16]byte
	w := newWorld(t, func(w *world, c *cryptoserver.Config) {
		j, err := journal.Open(journal.Config{Dir: dir})
		w.must(err)
		w.t.Cleanup(func() { w.must(j.Close()) })
		c.Journal, boot = j, j.BootID()
	})
	m := w.market()
	for range 5 {
		w.opened(m.ask(m.new, energy(days("2024-04-01", "2024-04-03"), importLow)))
	}
	n := len(w.audit())
	known := envelope.Chain{ServerID: "cs1", BootID: boot}
	head := w.read(known, 1)
	if _, err := known.Next(head[0]); err != nil {
		t.Fatal(err)
	}
	list, err := os.ReadDir(dir)
	w.must(err)
	name := list[slices.IndexFunc(list, func(e os.DirEntry) bool { return strings.HasSuffix(e.Name(), ".journal") })].Name()
	content, err := os.ReadFile(filepath.Join(dir, name))
	w.must(err)
	header, entries := content[:24], [][]byte{}
	for rest := content[24:]; len(rest) > 0; {
		size := binary.BigEndian.Uint32(rest)
		entries = append(entries, rest[8:8+size])
		rest = rest[8+size:]
	}
	if len(entries) != n {
		t.Fatalf("%d entries on disk, %d read", len(entries), n)
	}
	for what, tamper := range map[string]func([][]byte) [][]byte{
		"as it was":                  func(e [][]byte) [][]byte { return e },
		"one removed":                func(e [][]byte) [][]byte { return slices.Delete(e, n-3, n-2) },
		"two swapped":                func(e [][]byte) [][]byte { e[n-2], e[n-3] = e[n-3], e[n-2]; return e },
		"one changed":                func(e [][]byte) [][]byte { e[n-2] = flipped(e[n-2]); return e },
		"one added":                  func(e [][]byte) [][]byte { return slices.Insert(e, n-2, e[n-2]) },
		"changed, with a chain anew": func(e [][]byte) [][]byte { return rechained(t, e) },
		"the end cut off":            func(e [][]byte) [][]byte { return e[:n-1] },
	} {
		forged := filepath.Join(t.TempDir(), "journal")
		w.must(os.Mkdir(forged, 0o700))
		b := bytes.Clone(header)
		clone := make([][]byte, n)
		for i := range entries {
			clone[i] = bytes.Clone(entries[i])
		}
		for _, e := range tamper(clone) {
			b = binary.BigEndian.AppendUint32(b, uint32(len(e)))
			b = binary.BigEndian.AppendUint32(b, crc32.Checksum(e, crc32.MakeTable(crc32.Castagnoli)))
			b = append(b, e...)
		}
		w.must(os.WriteFile(filepath.Join(forged, name), b, 0o600))
		j, err := journal.Open(journal.Config{Dir: forged})
		w.must(err)
		// The auditor has the first entry, and what the server said its last was.
		chain := known
		read, err := j.Read(boot, 1, 1<<30)
		for i := 0; err == nil && i < len(read); i++ {
			_, err = chain.Next(read[i])
		}
		complete := err == nil && chain.Sequence == uint64(n)
		if complete != (what == "as it was") {
			t.Errorf("%s: read to %d of %d, %v", what, chain.Sequence, n, err)
		}
		w.must(j.Close())
	}
}

func (w *world) read(c envelope.Chain, n int) [][]byte {
	w.t.Helper()
	got, err := w.as("auditor").ReadJournal(w.t.Context(), w.address, c.BootID, c.Sequence)
	w.must(err)
	return got.Entries[:n]
}

func flipped(b []byte) []byte { b[len(b)-1] ^= 1; return b }

// rechained changes the first entry and makes all that follow fit it.
func rechained(t *testing.T, entries [][]byte) [][]byte {
	t.Helper()
	var previous [32]byte
	for i, b := range entries {
		e, err := envelope.ParseEntry(b)
		if err != nil {
			t.Fatal(err)
		}
		switch {
		case e.Receipt != nil:
			e.Receipt.Previous = previous
			entries[i] = e.Receipt.Encode()
		default:
			if e.SealEvent.Previous = previous; i == 0 {
				e.SealEvent.Client = "nobody"
			}
			entries[i] = e.SealEvent.Encode()
		}
		previous = sha256.Sum256(entries[i])
	}
	return entries
}

// forgetful is a journal that writes nothing: what is left is the cost of making
// the entries, which receipts cost without a journal.
type forgetful struct{ *journal.Journal }

func (forgetful) Append(n int, encode func(int, uint64, [32]byte) []byte) ([][]byte, error) {
	out := make([][]byte, n)
	var previous [32]byte
	for i := range out {
		out[i] = encode(i, uint64(i)+1, previous)
		previous = sha256.Sum256(out[i])
	}
	return out, nil
}

// BenchmarkOpenUnrecorded is BenchmarkOpen without the journal: the difference is
// what the journal adds to a request.
func BenchmarkOpenUnrecorded(b *testing.B) {
	w, q := benchMonth(b, func(w *world, c *cryptoserver.Config) { c.Journal = forgetful{w.journal.Journal} })
	c := w.as("gateway")
	got, err := c.Open(b.Context(), q)
	benchCheck(b, got, err)
	b.ReportAllocs()
	for b.Loop() {
		got, err := c.Open(context.Background(), q)
		benchCheck(b, got, err)
	}
}
