package auditlog_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"kluis/auditlog"
)

// TestProve makes proofs and has them checked by the real auditproof, built as
// it is released, which knows nothing but the public keys.
func TestProve(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	id := w.read()
	refused := w.refuse(time.Now())
	w.catchUp()
	held := must(os.ReadFile(filepath.Join(w.dir, "latest")))(t)
	w.read()
	w.catchUp()

	dir := t.TempDir()
	program := filepath.Join(dir, "auditproof")
	build := exec.Command("go", "build", "-trimpath", "-buildvcs=false", "-o", program, "../cmd/auditproof")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	heldFile, proofFile := filepath.Join(dir, "held"), filepath.Join(dir, "proof.json")
	w.check(os.WriteFile(heldFile, held, 0o600))
	check := func(b []byte, origin string, more ...string) (int, string) {
		t.Helper()
		w.check(os.WriteFile(proofFile, b, 0o600))
		cmd := exec.Command(program, append(append([]string{"--keys", w.hsm.SealKeysFile, "--origin", origin}, more...), proofFile)...)
		out, err := cmd.CombinedOutput()
		var exit *exec.ExitError
		if err != nil && !errors.As(err, &exit) {
			t.Fatal(err)
		}
		return cmd.ProcessState.ExitCode(), string(out)
	}
	prove := func(interaction [16]byte, held []byte) []auditlog.Proof {
		t.Helper()
		return must(auditlog.Prove(t.Context(), w.store, w.log, interaction, 0, held))(t)
	}
	encode := func(p []auditlog.Proof) []byte { return must(json.Marshal(p))(t) }

	proof := prove(id, nil)
	code, out := check(encode(proof), origin)
	for _, want := range []string{"PROVEN", text(id), w.ean.String(), w.gln.String(), "ENERGY_MANAGEMENT", "given", "gave a receipt", w.days.From.String()} {
		if code != 0 || !strings.Contains(out, want) {
			t.Errorf("exit code %d, want %q: %s", code, want, out)
		}
	}
	if code, out := check(encode(prove(refused, nil)), origin); code != 0 || !strings.Contains(out, "no relation; nothing was opened") {
		t.Errorf("a refusal: %d: %s", code, out)
	}
	// Of the checkpoint that somebody holds, and of no other.
	if code, out := check(encode(prove(id, held)), origin, "--checkpoint", heldFile); code != 0 {
		t.Errorf("%d: %s", code, out)
	}
	if code, out := check(encode(proof), origin, "--checkpoint", heldFile); code != 1 {
		t.Errorf("of another checkpoint than the one held: %d: %s", code, out)
	}
	if code, _ := check(encode(proof), "another.log"); code != 1 {
		t.Errorf("of another log: %d", code)
	}

	other := prove(refused, nil)[0]
	for name, change := range map[string]func(*auditlog.Proof){
		"the record":        func(p *auditlog.Proof) { p.Record = bytes.Clone(p.Record); p.Record[50] ^= 1 },
		"another's record":  func(p *auditlog.Proof) { p.Record = other.Record },
		"the receipt":       func(p *auditlog.Proof) { p.Receipt = nil },
		"the salt":          func(p *auditlog.Proof) { p.Salt = make([]byte, 16) },
		"no salt":           func(p *auditlog.Proof) { p.Salt = nil },
		"the index":         func(p *auditlog.Proof) { p.Index++ },
		"an index too high": func(p *auditlog.Proof) { p.Index = 1 << 40 },
		"a negative index":  func(p *auditlog.Proof) { p.Index = -1 },
		"a hash":            func(p *auditlog.Proof) { p.Hashes[0][0] ^= 1 },
		"a hash less":       func(p *auditlog.Proof) { p.Hashes = p.Hashes[1:] },
		"a hash more":       func(p *auditlog.Proof) { p.Hashes = append(p.Hashes, p.Hashes[0]) },
		"the checkpoint":    func(p *auditlog.Proof) { p.Checkpoint = strings.Replace(p.Checkpoint, "\n", "\n1", 1) },
		"the origin":        func(p *auditlog.Proof) { p.Origin = "another.log" },
		"the format":        func(p *auditlog.Proof) { p.Format = "kluis-audit-proof/2" },
	} {
		p := prove(id, nil)
		change(&p[0])
		if code, out := check(encode(p), origin); code != 1 || !strings.Contains(out, "NOT PROVEN") {
			t.Errorf("%s changed: %d: %s", name, code, out)
		}
	}
	for name, b := range map[string]string{"nothing": "", "no proof": "[]", "null": "null", "more": string(encode(proof)) + "x", "unknown": `[{"x":1}]`} {
		if code, out := check([]byte(b), origin); code != 1 {
			t.Errorf("%s: %d: %s", name, code, out)
		}
	}

	if _, err := auditlog.Prove(t.Context(), w.store, w.log, newID(), 0, nil); !errors.Is(err, auditlog.ErrNotLogged) {
		t.Errorf("of an interaction that was not: %v", err)
	}
	if _, err := auditlog.Prove(t.Context(), w.store, w.log, id, 1, nil); !errors.Is(err, auditlog.ErrNotLogged) || !strings.Contains(err.Error(), "check both") {
		t.Errorf("of another metering point: %v", err)
	}
	// A stream has as many records as metering points: of one, wherever it stands
	// among them; of all, it is said what is needed.
	w.tamper(`INSERT INTO audit_leaf (index, kind, number, version, id)
		SELECT (SELECT max(index) FROM audit_leaf) + n, 1, n, 0, $1::uuid FROM generate_series(1, $2::int) n`, text(id), auditlog.MaxTogether)
	if _, err := auditlog.Prove(t.Context(), w.store, w.log, id, 0, nil); err == nil || errors.Is(err, auditlog.ErrNotLogged) || !strings.Contains(err.Error(), "--ean") {
		t.Errorf("of a stream: %v", err)
	}
	if got := must(auditlog.Prove(t.Context(), w.store, w.log, id, w.ean.Int64(), nil))(t); len(got) != 1 || got[0].Index != proof[0].Index {
		t.Errorf("of one metering point of a stream: %+v", got)
	}
	w.tamper(`DELETE FROM audit_leaf WHERE number BETWEEN 1 AND $1`, auditlog.MaxTogether)
	w.tamper(`UPDATE access_log SET salt = decode(repeat('00', 16), 'hex') WHERE interaction_id = $1::uuid`, text(id))
	if _, err := auditlog.Prove(t.Context(), w.store, w.log, id, 0, nil); err == nil || !strings.Contains(err.Error(), "audit verify") {
		t.Errorf("of a record that was altered: %v", err)
	}
}
