package auditlog_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"slices"
	"strings"
	"testing"
	"time"

	"kluis/auditlog"
	"kluis/auditlog/leaf"
	"kluis/authz"
	"kluis/cryptoserver/control"
	"kluis/internal/audit"
	"kluis/internal/authn"
	"kluis/meter"
)

// step has a step sealed on the legal file as the world has it, and the world
// goes on from the new version.
func (w *world) step(s authz.Step) *authz.LegalFile {
	w.t.Helper()
	w.file = must(w.as("registrar").SealStep(w.t.Context(), w.file, s))(w.t)
	return must(must(authz.NewSealKeys(w.hsm.SealKeys...))(w.t).LegalFile(w.file))(w.t)
}

// keep stores the legal file as the world has it.
func (w *world) keep(f *authz.LegalFile) {
	w.t.Helper()
	w.exec(`INSERT INTO legal_file (ean, version, file, sealed_at) VALUES ($1, $2, $3, $4)`, w.ean.Int64(), int64(f.Version()), w.file, f.SealedAt())
}

// optOut is a step that takes nothing away of what the world reads.
func (w *world) optOut(ago meter.Day) authz.Step {
	return authz.SetOptOut{Days: meter.DayRange{From: w.days.From - ago, To: w.days.From - ago + 5}}
}

// stepRecord is the record that a step of a consent was taken.
func (w *world) stepRecord(f *authz.LegalFile) audit.Record {
	return audit.Record{InteractionID: newID(), At: time.Now(), Operation: audit.ConsentStep, Action: authz.ActionRevoke, ConsentID: newID(), Supplier: w.gln, EAN: w.ean,
		Purpose: meter.EnergyManagement, Outcome: audit.Given, LegalFile: f.Digest(), FileVersion: f.Version(), Profile: w.profile.Digest()}
}

// TestUnstored: what was opened or said on a legal file that is not the one
// stored is found, and what an honest interruption leaves is not.
func TestUnstored(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		alter   func(w *world)
		want    []auditlog.What
		notices map[auditlog.What]int64
		detail  string
	}{
		"opened on a step that was kept back": {func(w *world) {
			w.step(w.optOut(50))
			w.read()
		}, []auditlog.What{auditlog.OpenedUnstored}, map[auditlog.What]int64{auditlog.FactNotStored: 1}, "no version 4 is stored"},
		"opened on a step on one that was kept back": {func(w *world) {
			w.step(w.optOut(50))
			w.step(w.optOut(60))
			w.read()
		}, []auditlog.What{auditlog.OpenedUnstored}, map[auditlog.What]int64{auditlog.FactNotStored: 2}, "no version 5 is stored"},
		"opened on another step of the same version": {func(w *world) {
			before := w.file
			w.keep(w.step(w.optOut(50)))
			w.file = before
			w.step(w.optOut(60))
			w.read()
		}, []auditlog.What{auditlog.OpenedUnstored}, map[auditlog.What]int64{auditlog.FactForked: 1}, "the stored one of that version is another"},
		"opened on a step that was kept back, and recorded as on the stored one": {func(w *world) {
			id := newID()
			honest := w.recordOf(id, w.open(newID()))
			w.step(w.optOut(50))
			record := w.recordOf(id, w.open(id))
			record.LegalFile, record.FileVersion = honest.LegalFile, honest.FileVersion
			w.check(w.gateway.Record(w.t.Context(), record))
		}, []auditlog.What{auditlog.OpenedUnstored, auditlog.ReceiptBad, auditlog.NotRecorded}, nil, "no version 4 is stored"},
		"opened on a step that was kept back, and not recorded": {func(w *world) {
			w.step(w.optOut(50))
			w.open(newID())
		}, []auditlog.What{auditlog.OpenedUnstored, auditlog.NotRecorded}, nil, "no version 4 is stored"},
		"a step recorded as taken, and kept back": {func(w *world) {
			w.check(w.gateway.Record(w.t.Context(), w.stepRecord(w.step(w.optOut(50)))))
		}, []auditlog.What{auditlog.RecordedUnstored}, map[auditlog.What]int64{auditlog.FactNotStored: 1}, "no version 4 is stored"},
		"a version stored on one that was kept back": {func(w *world) {
			w.step(w.optOut(50))
			w.keep(w.step(w.optOut(60)))
		}, []auditlog.What{auditlog.FileBroken}, map[auditlog.What]int64{auditlog.FactNotStored: 1}, "no version 4 is stored"},
		"a version stored on another than is stored": {func(w *world) {
			before := w.file
			w.keep(w.step(w.optOut(50)))
			w.file = before
			w.step(w.optOut(60))
			w.keep(w.step(w.optOut(70)))
		}, []auditlog.What{auditlog.FileBroken}, map[auditlog.What]int64{auditlog.FactForked: 1}, "it was made of another version before it than is stored"},
		"a version that no step makes": {func(w *world) {
			f, key := w.forge()
			w.keep(f)
			// The next one is as it should be: one break is one finding.
			f = must(authz.Apply(f, w.optOut(60), f.Actor(), time.Now(), w.profile.Location()))(w.t)
			w.file = must(authz.Seal(f.Payload(), key))(w.t)
			w.keep(f)
		}, []auditlog.What{auditlog.FileBroken}, nil, "it is not what its step makes of the version before"},
		"a version that no pinned key signed": {func(w *world) {
			f, _ := w.forge()
			w.extra = nil
			w.keep(f)
		}, []auditlog.What{auditlog.RowBad}, nil, ""},

		"steps that were kept back, of which nothing came": {func(w *world) {
			before := w.file
			w.step(w.optOut(50)) // its write failed
			w.file = before
			w.step(w.optOut(50)) // and so again
			w.file = before
			w.keep(w.step(w.optOut(50)))
			w.read()
			told := w.stepRecord(must(must(authz.NewSealKeys(w.hsm.SealKeys...))(w.t).LegalFile(w.file))(w.t))
			told.Operation, told.Action, told.Purpose = audit.Consents, 0, 0
			w.check(w.gateway.Record(w.t.Context(), told))
			w.step(w.optOut(60)) // its write failed, and nobody tried again
		}, nil, map[auditlog.What]int64{auditlog.FactForked: 2, auditlog.FactNotStored: 1}, ""},
		"supplier records that were not stored": {func(w *world) {
			for _, before := range [][]byte{nil, w.record} {
				must(w.as("registrar").SealSupplier(w.t.Context(), before, authz.SupplierFacts{GLN: w.gln, Name: "Other", Scopes: []string{authn.ScopeReadings}}))(w.t)
			}
		}, nil, map[auditlog.What]int64{auditlog.FactForked: 1, auditlog.FactNotStored: 1}, ""},
		"steps of every kind": {func(w *world) {
			id := newID()
			consent := authz.GrantConsent{ID: id, Supplier: w.gln, Purpose: meter.EnergyManagement, Classes: []meter.Class{meter.Registers}, Granularity: meter.P1D,
				Days: w.days, ValidUntil: time.Now().AddDate(0, 1, 0).Truncate(time.Second).UTC(), Evidence: "by phone"}
			for _, s := range []authz.Step{
				consent, w.optOut(50), authz.EndOptOut{From: w.days.From - 48},
				authz.RevokeConsent{ID: id},
				authz.CorrectMove{Was: w.days.From - 100, Is: w.days.From - 101},
			} {
				w.keep(w.step(s))
			}
			w.read()
		}, nil, nil, ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			w.read()
			w.catchUp()
			c.alter(w)
			_, stop := w.auditing(w.store, w.servers(), w.export)
			w.settled()
			stop()
			r := w.finds(c.want...)
			for what, n := range c.notices {
				for _, f := range r.Findings {
					if f.What == what && f.Row != leaf.Control.String() { // the test's feed is not stored
						n--
					}
				}
				if n != 0 {
					t.Errorf("%d more or less of %s: %v", n, what, r.Findings)
				}
			}
			if c.detail != "" && !slices.ContainsFunc(r.Findings, func(f auditlog.Finding) bool {
				return slices.Contains(c.want, f.What) && f.EAN == w.ean.String() && f.Version > 3 && strings.Contains(f.Detail, c.detail) &&
					(f.What == auditlog.FileBroken || f.Interaction != "")
			}) {
				t.Errorf("nothing says %q: %v", c.detail, r.Findings)
			}
		})
	}
}

// software is a seal key whose owner signs whatever he likes.
type software struct{ *ecdsa.PrivateKey }

func (s software) KeyID() authz.KeyID { return authz.KeyIDOf(&s.PublicKey) }

func (s software) SignDigest(digest [32]byte) (sig [64]byte, err error) {
	r, n, err := ecdsa.Sign(rand.Reader, s.PrivateKey, digest[:])
	if err == nil {
		r.FillBytes(sig[:32])
		n.FillBytes(sig[32:])
	}
	return sig, err
}

// forge makes the next version, of a right that its step does not give, and has
// it signed by a pinned key.
func (w *world) forge() (*authz.LegalFile, authz.Signer) {
	w.t.Helper()
	key := software{must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))(w.t)}
	w.extra = []*ecdsa.PublicKey{&key.PublicKey}
	keys := must(authz.NewSealKeys(append(slices.Clone(w.hsm.SealKeys), w.extra...)...))(w.t)
	now := must(keys.LegalFile(w.file))(w.t)
	rows := must(w.store.Rows(w.t.Context(), []leaf.Key{{Kind: leaf.LegalFile, Number: w.ean.Int64(), Version: 2}}))(w.t)
	before := must(keys.LegalFile(rows[0].Content))(w.t)
	// The version before with the step, called the next one of the newest.
	next := must(authz.Apply(before, w.optOut(50), authz.Actor{Kind: authz.ByOperator, Name: "registrar"}, time.Now(), w.profile.Location()))(w.t)
	payload, old, digest := next.Payload(), before.Digest(), now.Digest()
	at := strings.Index(string(payload), string(old[:]))
	copy(payload[at:], digest[:])
	const version = 4 + len("kluis/legal-file") + 1 + 8 + 1
	if n := binary.BigEndian.Uint64(payload[version:]); n != 3 {
		w.t.Fatalf("version %d", n)
	}
	binary.BigEndian.PutUint64(payload[version:], now.Version()+1)
	w.file = must(authz.Seal(payload, key))(w.t)
	forged := must(keys.LegalFile(w.file))(w.t)
	if forged.Previous() != digest || forged.Digest() != sha256.Sum256(payload) {
		w.t.Fatal("not the next version")
	}
	return forged, key
}

// TestFactDigests: what the database says the digest of a sealed fact is, is what
// its reader says.
func TestFactDigests(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	keys := must(authz.NewSealKeys(w.hsm.SealKeys...))(t)
	hash := sha256.Sum256([]byte("entry"))
	key := software{must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))(t)}
	head := must(control.Head{Sequence: 5, Hash: hash, At: time.Now()}.Sign(key))(t)
	w.exec(`INSERT INTO control_entry (sequence, entry, head) VALUES (5, '\x01', $1)`, head)
	got := must(w.store.FactDigests(t.Context(), []leaf.Key{
		{Kind: leaf.LegalFile, Number: w.ean.Int64(), Version: 4}, {Kind: leaf.Supplier, Number: w.gln.Int64(), Version: 1},
		{Kind: leaf.Control, Version: 5}, {Kind: leaf.LegalFile, Number: w.ean.Int64(), Version: 3}, {Kind: leaf.LegalFile, Number: 1, Version: 3},
		{Kind: leaf.Access},
	}))(t)
	file, record := must(keys.LegalFile(w.file))(t).Digest(), must(keys.Supplier(w.record))(t).Digest()
	if got[0] != nil || got[4] != nil || got[5] != nil {
		t.Errorf("digests of what is not there: %v", got)
	}
	if got[1] == nil || *got[1] != record || got[3] == nil || *got[3] != file || got[2] == nil || *got[2] != hash {
		t.Errorf("file %x, record %x, head %x: %v", file, record, hash, got)
	}
}
