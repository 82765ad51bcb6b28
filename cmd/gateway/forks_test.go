package main

import (
	"bytes"
	"errors"
	"testing"

	"github.com/lib/pq"

	"kluis/authz"
	"kluis/meter"
	"kluis/migrations"
)

// A captured gateway stores what no honest one would: its database role may add
// rows of legal files, and change the index of consents. The database keeps out
// what is not the next version; where a superuser lets it in, nothing is read or
// sealed on it; and none of it keeps a customer from revoking.

// granted is a metering point with a consent that the supplier reads on.
func (w *world) granted(n int) (meter.EAN, func() reply) {
	w.t.Helper()
	e := w.customer(n, w.a)
	w.fill(e)
	k, _ := w.request(w.a, e, nil)
	tag := w.asStaff(w.view(e, authz.Agent), "/v1/consents/"+k.Id.String()).header.Get("ETag")
	r := w.answer(k, tag, authz.ActionGrant)
	k = w.consentOf(r, 200)
	if got := w.gives(w.a, e); got != "yes" {
		w.t.Fatalf("the consent gives %s", got)
	}
	return e, func() reply { return w.answer(k, r.header.Get("ETag"), authz.ActionRevoke) }
}

func (w *world) asGateway(statement string, args ...any) error {
	w.t.Helper()
	_, err := w.db.Open(w.t, migrations.RoleGateway).ExecContext(w.t.Context(), statement, args...)
	return err
}

// keptOut has the gateway's role try to store a legal file, and a superuser do it.
func (w *world) keptOut(statement string, args ...any) {
	w.t.Helper()
	var refused *pq.Error
	if err := w.asGateway(statement, args...); !errors.As(err, &refused) || refused.Code != "23514" {
		w.t.Errorf("the gateway's role: %v", err)
	}
	w.sql(statement, args...)
}

// unserved says that nothing is read of the metering point.
func (w *world) unserved(e meter.EAN) {
	w.t.Helper()
	if r := w.get(w.a, w.path(e)); r.status != 500 || !bytes.Contains(r.body, []byte("evidence-invalid")) {
		w.t.Errorf("a read: %d %s", r.status, r.body)
	}
}

// The current version again under a number that no step will ever reach: all
// later ones would be stored and never be looked at.
func TestAFileUnderAnotherVersion(t *testing.T) {
	t.Parallel()
	w := newWorld(t, options{})
	e, revoke := w.granted(1)
	w.keptOut(`INSERT INTO legal_file (ean, version, file, sealed_at)
		SELECT ean, 9223372036854775807, file, sealed_at FROM legal_file WHERE ean = $1 ORDER BY version DESC LIMIT 1`, e.Int64())
	w.unserved(e)
	if r := revoke(); r.status != 500 || !bytes.Contains(r.body, []byte("evidence-invalid")) {
		t.Errorf("revoked, it is said, and it would not count: %d %s", r.status, r.body)
	}
	w.sql(`DELETE FROM legal_file WHERE ean = $1 AND version = 9223372036854775807`, e.Int64())
	if r := revoke(); r.status != 200 {
		t.Errorf("put right: %d %s", r.status, r.body)
	}
	if got := w.gives(w.a, e); got == "yes" {
		t.Error("read on a revoked consent")
	}
}

// Two steps sealed on what was current before the customer revoked. Stored on
// top of the revocation, the second is the newest version, signed and verified,
// and knows nothing of it.
func TestAForkIsStored(t *testing.T) {
	t.Parallel()
	w := newWorld(t, options{})
	e, revoke := w.granted(1)
	before, err := w.registrar.LegalFile(t.Context(), e)
	if err != nil {
		t.Fatal(err)
	}
	fork := before.Sealed
	var forks [][]byte
	for id := range byte(2) {
		step := w.consent(w.a)
		step.ID = [16]byte{0xf0, id}
		if fork, err = w.pool.registrar.SealStep(t.Context(), fork, step); err != nil {
			t.Fatal(err)
		}
		forks = append(forks, fork)
	}
	if r := revoke(); r.status != 200 {
		t.Fatalf("%d %s", r.status, r.body)
	}
	file, err := w.pool.keys.LegalFile(fork)
	if err != nil {
		t.Fatal(err)
	}
	w.keptOut(`INSERT INTO legal_file (ean, version, file, sealed_at) VALUES ($1, $2, $3, now())`, e.Int64(), int64(file.Version()), fork)
	w.unserved(e)
	var refused *pq.Error
	if err := w.asGateway(`INSERT INTO legal_file (ean, version, file, sealed_at) VALUES ($1, $2, $3, now())`, e.Int64(), int64(file.Version()), forks[0]); !errors.As(err, &refused) {
		t.Errorf("under another number: %v", err)
	}
	if r := w.post(w.a, w.token(w.a), "/v1/consents", w.form(e, nil)); r.status != 500 {
		t.Errorf("a step on the fork: %d %s", r.status, r.body)
	}
	// Without the version between, nobody can say what it follows on.
	w.sql(`DELETE FROM legal_file WHERE ean = $1 AND version = $2`, e.Int64(), int64(file.Version()-1))
	w.unserved(e)
}

// The index of consents is no evidence, and no way to keep a consent alive.
func TestTheIndexOfConsentsIsGone(t *testing.T) {
	t.Parallel()
	w := newWorld(t, options{})
	e, revoke := w.granted(1)
	if err := w.asGateway(`DELETE FROM consent`); err != nil {
		t.Fatal(err)
	}
	if r := revoke(); r.status != 200 {
		t.Errorf("%d %s", r.status, r.body)
	}
	if got := w.gives(w.a, e); got == "yes" {
		t.Error("read on a revoked consent")
	}
}

// Rows of other suppliers under a consent's id do not hide it from its own.
func TestForeignRowsUnderAConsentsID(t *testing.T) {
	t.Parallel()
	w := newWorld(t, options{})
	e := w.customer(9, w.a)
	k, _ := w.request(w.a, e, nil)
	if err := w.asGateway(`INSERT INTO consent (ean, consent_id, gln, state, from_day, to_day, valid_until)
		SELECT n, c.consent_id, n, c.state, c.from_day, c.to_day, c.valid_until FROM consent c, generate_series(1, 9) n WHERE c.ean = $1`, e.Int64()); err != nil {
		t.Fatal(err)
	}
	if r := w.get(w.a, "/v1/consents/"+k.Id.String()); r.status != 200 {
		t.Errorf("%d %s", r.status, r.body)
	}
}
