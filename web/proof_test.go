package web

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"math/big"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"crypto/x509"
	"encoding/pem"

	"github.com/google/uuid"
	"golang.org/x/mod/sumdb/tlog"

	"kluis/authz"
	"kluis/cryptoserver/checkpoint"
	"kluis/cryptoserver/envelope"
	"kluis/internal/audit"
	"kluis/meter"
	"kluis/openapi/client"
)

// loggedEntry is of a small audit log with a signed head, and a proof of its third entry.
type loggedEntry struct {
	proof       client.AccessProof
	interaction uuid.UUID
	ean         meter.EAN
	origin      string
	keys        []*ecdsa.PublicKey
	profile     *meter.Profile
}

func (l loggedEntry) check(a client.AccessProof) (proven, error) {
	return checkProof(&a, l.interaction, l.ean, l.origin, l.keys, l.profile)
}

// readRecord is of readings given to an employee, with a receipt.
func readRecord(l loggedEntry, profile *meter.Profile) audit.Record {
	low, _ := profile.Field("import_low")
	days := meter.DayRange{From: must(meter.ParseDay("2026-10-01")), To: must(meter.ParseDay("2026-10-11"))}
	r := audit.Record{
		InteractionID: l.interaction, At: time.Date(2026, 10, 25, 1, 30, 0, 0, time.UTC), Operation: audit.Readings, Supplier: must(meter.ParseGLN("8712423000018")),
		Employee: "https://idp.example#agent-17", Reason: "case 4711", EAN: l.ean, Purpose: meter.CustomerService, Days: days, Fields: []meter.FieldCode{low.Code},
		Outcome: audit.Partly, LegalFile: [32]byte{1}, FileVersion: 3, Profile: profile.Digest(),
		Granted:  []audit.Granted{{Field: low.Code, Days: meter.NewDaySet(meter.DayRange{From: days.From, To: days.To - 1}), Kind: meter.Register, Granularity: meter.P1D, Basis: meter.CustomerServiceBasis, Rule: "a-rule"}},
		Withheld: []authz.Withheld{{Field: low.Code, Days: meter.DayRange{From: days.To - 1, To: days.To}, Reason: meter.PeriodInFuture}},
	}
	r.Receipt = envelope.Receipt{ServerID: "c1", Sequence: 1, At: r.At, InteractionID: r.InteractionID, Supplier: r.Supplier, EAN: r.EAN, Purpose: r.Purpose, FileVersion: 3, Opened: 9, Refused: 2, Damaged: 1}.Encode()
	return r
}

func newLogged(t *testing.T) loggedEntry {
	t.Helper()
	key := must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
	l := loggedEntry{interaction: uuid.MustParse("019acf2e-8a51-7b0c-9d4e-0f6a1c2b3d4e"), ean: must(meter.ParseEAN(ean)), origin: "test.example/audit", keys: []*ecdsa.PublicKey{&key.PublicKey}, profile: testProfile(t)}
	rec := readRecord(l, l.profile)
	salt, record, receipt := []byte("0123456789abcdef"), must(rec.Encode()), rec.Receipt
	leaf := accessLeaf(salt, record, receipt)
	var stored []tlog.Hash
	read := tlog.HashReaderFunc(func(at []int64) ([]tlog.Hash, error) {
		var out []tlog.Hash
		for _, i := range at {
			out = append(out, stored[i])
		}
		return out, nil
	})
	const size, index = 6, 2
	for i := range int64(size) {
		h := tlog.RecordHash([]byte{byte(i)})
		if i == index {
			h = leaf
		}
		stored = append(stored, must(tlog.StoredHashesForRecordHash(i, h, read))...)
	}
	head := checkpoint.Checkpoint{Origin: l.origin, Size: size, Root: must(tlog.TreeHash(size, read)), At: time.Date(2026, 11, 1, 12, 0, 0, 0, time.UTC)}
	note := must(checkpoint.Sign(head, &key.PublicKey, func(d [32]byte) (sig [64]byte, err error) {
		r, s, err := ecdsa.Sign(rand.Reader, key, d[:])
		if n := elliptic.P256().Params().N; err == nil && s.Cmp(new(big.Int).Rsh(n, 1)) > 0 {
			s.Sub(n, s)
		}
		r.FillBytes(sig[:32])
		s.FillBytes(sig[32:])
		return sig, err
	}))
	l.proof = client.AccessProof{Origin: l.origin, Checkpoint: note, Size: size, Index: index, SignedAt: head.At, Leaf: hex.EncodeToString(leaf[:]), Whole: true, Salt: &salt, Record: &record, Receipt: &receipt}
	for _, h := range must(tlog.ProveRecord(size, index, read)) {
		l.proof.Hashes = append(l.proof.Hashes, h[:])
	}
	return l
}

func TestCheckProof(t *testing.T) {
	t.Parallel()
	l := newLogged(t)
	p, err := l.check(l.proof)
	if err != nil || !p.Whole || p.Size != 6 || p.Index != 2 || p.Record.Caller.Gln != "8712423000018" || !p.Record.At.Equal(time.Date(2026, 10, 25, 1, 30, 0, 0, time.UTC)) {
		t.Fatalf("%+v, %v", p, err)
	}
	digest := l.proof
	digest.Whole, digest.Salt, digest.Record, digest.Receipt = false, nil, nil, nil
	if p, err := l.check(digest); err != nil || p.Whole || p.Record != nil {
		t.Errorf("the digest alone: %+v, %v", p, err)
	}
}

// TestCheckProofAltered: whatever part of a proof is altered, it does not check.
func TestCheckProofAltered(t *testing.T) {
	t.Parallel()
	l := newLogged(t)
	other := newLogged(t) // signed by another key
	flip := func(b []byte, i int) []byte {
		b = append([]byte{}, b...)
		b[(i+len(b))%len(b)] ^= 1
		return b
	}
	part := func(p **[]byte, i int) func(*client.AccessProof) {
		return func(*client.AccessProof) { b := flip(**p, i); *p = &b }
	}
	type change func(*client.AccessProof)
	changes := map[string]change{
		"origin":             func(a *client.AccessProof) { a.Origin = "other.example/audit" },
		"size":               func(a *client.AccessProof) { a.Size++ },
		"negative size":      func(a *client.AccessProof) { a.Size = -1 },
		"index":              func(a *client.AccessProof) { a.Index++ },
		"index outside":      func(a *client.AccessProof) { a.Index = a.Size },
		"negative index":     func(a *client.AccessProof) { a.Index = -1 },
		"signed at":          func(a *client.AccessProof) { a.SignedAt = a.SignedAt.Add(time.Microsecond) },
		"another key's head": func(a *client.AccessProof) { a.Checkpoint = other.proof.Checkpoint },
		"head's size": func(a *client.AccessProof) {
			a.Checkpoint = strings.Replace(a.Checkpoint, "\n6\n", "\n7\n", 1)
			a.Size = 7
		},
		"head unsigned": func(a *client.AccessProof) { a.Checkpoint, _, _ = strings.Cut(a.Checkpoint, "\n\n") },
		"leaf":          func(a *client.AccessProof) { a.Leaf = "00" + a.Leaf[2:] },
		"leaf cut":      func(a *client.AccessProof) { a.Leaf = a.Leaf[:62] },
		"leaf long":     func(a *client.AccessProof) { a.Leaf += "00" },
		"leaf no hex":   func(a *client.AccessProof) { a.Leaf = "zz" + a.Leaf[2:] },
		"no hashes":     func(a *client.AccessProof) { a.Hashes = nil },
		"a hash less":   func(a *client.AccessProof) { a.Hashes = a.Hashes[1:] },
		"a hash more": func(a *client.AccessProof) {
			a.Hashes = append(a.Hashes[:len(a.Hashes):len(a.Hashes)], make([]byte, 32))
		},
		"a hash cut":         func(a *client.AccessProof) { a.Hashes = append([][]byte{a.Hashes[0][:31]}, a.Hashes[1:]...) },
		"no salt":            func(a *client.AccessProof) { a.Salt = nil },
		"no record":          func(a *client.AccessProof) { a.Record = nil },
		"no receipt":         func(a *client.AccessProof) { a.Receipt = nil },
		"digest with record": func(a *client.AccessProof) { a.Whole = false },
		"whole without": func(a *client.AccessProof) {
			a.Salt, a.Record, a.Receipt = nil, nil, nil
		},
	}
	for name, at := range map[string]int{"first": 0, "last": -1} {
		changes["salt "+name] = func(a *client.AccessProof) { part(&a.Salt, at)(a) }
		changes["record "+name] = func(a *client.AccessProof) { part(&a.Record, at)(a) }
		changes["receipt "+name] = func(a *client.AccessProof) { part(&a.Receipt, at)(a) }
	}
	for i := range l.proof.Hashes {
		changes["hash "+string(rune('a'+i))] = func(a *client.AccessProof) {
			a.Hashes = append([][]byte{}, a.Hashes...)
			a.Hashes[i] = flip(a.Hashes[i], 7)
		}
	}
	for name, change := range changes {
		a := l.proof
		change(&a)
		if p, err := l.check(a); !errors.Is(err, errProof) {
			t.Errorf("%s: %+v, %v", name, p, err)
		}
	}
	// A true proof of another request, or of another metering point, or in a log
	// of whose keys nothing is known.
	for name, o := range map[string]loggedEntry{
		"interaction": {interaction: uuid.New(), ean: l.ean, origin: l.origin, keys: l.keys, profile: l.profile},
		"ean":         {interaction: l.interaction, ean: must(meter.ParseEAN("871687140000000019")), origin: l.origin, keys: l.keys, profile: l.profile},
		"origin":      {interaction: l.interaction, ean: l.ean, origin: "x", keys: l.keys, profile: l.profile},
		"keys":        {interaction: l.interaction, ean: l.ean, origin: l.origin, keys: other.keys, profile: l.profile},
		"no keys":     {interaction: l.interaction, ean: l.ean, origin: l.origin, profile: l.profile},
	} {
		if p, err := o.check(l.proof); !errors.Is(err, errProof) {
			t.Errorf("another %s: %+v, %v", name, p, err)
		}
	}
}

// TestProofFile: what can be saved is what the auditors' program checks, which
// shares no code with the portal.
func TestProofFile(t *testing.T) {
	t.Parallel()
	l := newLogged(t)
	dir := t.TempDir()
	der := must(x509.MarshalPKIXPublicKey(l.keys[0]))
	write := func(name string, b []byte) string {
		file := filepath.Join(dir, name)
		if err := os.WriteFile(file, b, 0o600); err != nil {
			t.Fatal(err)
		}
		return file
	}
	keys := write("keys.pem", pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}))
	run := func(name string, a client.AccessProof) (string, error) {
		file := write(name, must(json.Marshal(fileOf(&a))))
		out, err := exec.CommandContext(t.Context(), "go", "run", "../cmd/auditproof", "--keys", keys, "--origin", l.origin, file).CombinedOutput()
		return string(out), err
	}
	if out, err := run("proof.json", l.proof); err != nil || !strings.Contains(out, "PROVEN: leaf 2 of the 6") || !strings.Contains(out, "8712423000018") {
		t.Errorf("%v: %s", err, out)
	}
	bad := l.proof
	record := append([]byte{}, *bad.Record...)
	record[len(record)-1] ^= 1
	bad.Record = &record
	if out, err := run("bad.json", bad); err == nil || !strings.Contains(out, "NOT PROVEN") {
		t.Errorf("altered: %v: %s", err, out)
	}
}
