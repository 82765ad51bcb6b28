package postgres_test

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"

	"kluis/authz"
	"kluis/internal/audit"
	"kluis/internal/canonical"
	"kluis/internal/postgres"
	"kluis/internal/testing/pgtest"
	"kluis/meter"
	"kluis/migrations"
)

// asking is a step that asks for a consent, with all that is stored with it.
type asking struct {
	file   *authz.LegalFile
	sealed []byte
	key    postgres.IdempotencyKey
	record audit.Record
}

// unsigned is a legal file as it is stored, but for the signature, which the
// database does not look at.
func unsigned(f *authz.LegalFile) []byte {
	w := canonical.New("kluis/sealed", 1)
	w.Fixed(make([]byte, 8))
	w.Bytes(f.Payload())
	w.Fixed(make([]byte, 64))
	return w.Encoded()
}

// asks makes the next version of a file, in which alpha asks for a consent.
func asks(t testing.TB, base *authz.LegalFile, n byte) asking {
	t.Helper()
	id := uuid.NewSHA1(uuid.Nil, []byte{n})
	f, err := authz.Apply(base, authz.RequestConsent{
		ID: id, Supplier: alpha, Purpose: meter.EnergyManagement, Classes: []meter.Class{meter.Intervals}, Granularity: meter.PT15M,
		Days: days("2025-01-01", ""), ValidUntil: now.AddDate(1, 0, 0), Evidence: fmt.Sprint("letter ", n),
	}, authz.Actor{Kind: authz.BySupplier, Name: alpha.String()}, now, profile().Location())
	if err != nil {
		t.Fatal(err)
	}
	return asking{
		f, unsigned(f),
		postgres.IdempotencyKey{Caller: alpha, Key: sha256.Sum256([]byte{n}), Request: sha256.Sum256([]byte{n, n}), Consent: id},
		audit.Record{
			InteractionID: uuid.New(), At: now, Operation: audit.ConsentStep, Supplier: alpha, EAN: f.EAN(), Purpose: meter.EnergyManagement,
			ConsentID: id, Action: authz.ActionRequest, Outcome: audit.Given, FileVersion: f.Version(), LegalFile: f.Digest(),
		},
	}
}

func (a asking) store(t testing.TB, g *postgres.Gateway) error {
	return g.StoreStep(t.Context(), a.file, a.sealed, a.key, a.record)
}

// whole says what is stored of steps, as the owner sees it.
const whole = `SELECT concat_ws(' ', (SELECT count(*) FROM legal_file), (SELECT count(*) FROM consent), (SELECT count(*) FROM idempotency_key), (SELECT count(*) FROM access_log))`

// A step is stored with its key and record, or not at all.
func TestStoreStep(t *testing.T) {
	t.Parallel()
	d := pgtest.New(t)
	owner := d.Open(t, migrations.RoleOwner)
	g := gateway(t, d)
	base := supplied(t, home)
	if err := registrar(t, d).StoreLegalFile(t.Context(), base, unsigned(base)); err != nil {
		t.Fatal(err)
	}
	first := asks(t, base, 1)
	if k, err := g.IdempotencyKey(t.Context(), alpha, first.key.Key); k != nil || err != nil {
		t.Errorf("before: %+v, %v", k, err)
	}
	if c, err := g.Consent(t.Context(), alpha, first.key.Consent); len(c) != 0 || err != nil {
		t.Errorf("before: %+v, %v", c, err)
	}
	if err := first.store(t, g); err != nil {
		t.Fatal(err)
	}
	if k, err := g.IdempotencyKey(t.Context(), alpha, first.key.Key); err != nil || *k != first.key {
		t.Errorf("%+v, %v", k, err)
	}
	if k, err := g.IdempotencyKey(t.Context(), beta, first.key.Key); k != nil || err != nil {
		t.Errorf("another's key of the same name: %+v, %v", k, err)
	}
	if c, err := g.Consent(t.Context(), alpha, first.key.Consent); err != nil || len(c) != 1 || c[0].EAN != home || c[0].LegalFile.Version != first.file.Version() || string(c[0].LegalFile.Sealed) != string(first.sealed) || string(c[0].LegalFile.Previous) != string(unsigned(base)) {
		t.Errorf("%+v, %v", c, err)
	}
	if c, err := g.Consent(t.Context(), beta, first.key.Consent); len(c) != 0 || err != nil {
		t.Errorf("of another supplier: %+v, %v", c, err)
	}
	if got := value(t, owner, whole); got != "2 2 1 1" {
		t.Errorf("stored %s", got)
	}
	if got := value(t, owner, `SELECT string_agg(state::text, ',' ORDER BY state) FROM consent`); got != "1,2" {
		t.Errorf("states %s", got)
	}
	supply := value(t, owner, `SELECT string_agg(gln || ' ' || from_day, ',') FROM supply_period`)

	// Whatever is there already keeps all of it out.
	second := asks(t, first.file, 2)
	for name, change := range map[string]func(a *asking){
		"the version": func(a *asking) { a.file, a.sealed = asks(t, base, 2).file, asks(t, base, 2).sealed },
		"the key":     func(a *asking) { a.key.Key = first.key.Key },
		"the record":  func(a *asking) { a.record.InteractionID = first.record.InteractionID },
	} {
		a := second
		change(&a)
		if err := a.store(t, g); !errors.Is(err, postgres.ErrConflict) {
			t.Errorf("%s: %v, want ErrConflict", name, err)
		}
		if got := value(t, owner, whole); got != "2 2 1 1" {
			t.Errorf("%s: stored %s", name, got)
		}
	}
	// A record that is none.
	a := second
	a.record.Action = 0
	if err := a.store(t, g); !errors.Is(err, audit.ErrRecord) {
		t.Errorf("%v", err)
	}
	if err := second.store(t, g); err != nil {
		t.Fatal(err)
	}
	if got := value(t, owner, whole); got != "3 3 2 2" {
		t.Errorf("stored %s", got)
	}
	if got := value(t, owner, `SELECT string_agg(gln || ' ' || from_day, ',') FROM supply_period`); got != supply {
		t.Errorf("supply periods %s, before %s", got, supply)
	}

	// An index that somebody meddled with proposes no more than a few.
	for i := range 9 {
		if _, err := owner.Exec(`INSERT INTO consent (ean, consent_id, gln, state, from_day, valid_until) VALUES ($1, $2, 1, 2, '2025-01-01', now())`,
			int64(i+1), uuid.UUID(first.key.Consent).String()); err != nil {
			t.Fatal(err)
		}
	}
	if c, err := g.Consent(t.Context(), alpha, first.key.Consent); err != nil || len(c) > 4 {
		t.Errorf("%d candidates, %v", len(c), err)
	}
}

// However long a file has become, its next version is seen to follow on it.
func TestStoreStepOnALongFile(t *testing.T) {
	t.Parallel()
	d := pgtest.New(t)
	g := gateway(t, d)
	base := supplied(t, home)
	for n := range byte(250) {
		base = must(authz.Apply(base, authz.GrantConsent{
			ID: [16]byte{n, 7}, Supplier: beta, Purpose: meter.EnergyManagement, Classes: []meter.Class{meter.Intervals}, Granularity: meter.PT15M,
			Days: days("2025-01-01", ""), ValidUntil: now.AddDate(1, 0, 0), Evidence: strings.Repeat("letter", 21),
		}, authz.Actor{Kind: authz.ByCustomer, Name: strings.Repeat("eva", 42)}, now, profile().Location()))
	}
	if n := len(base.Payload()); n <= 1<<16 {
		t.Fatalf("%d bytes", n)
	}
	if err := registrar(t, d).StoreLegalFile(t.Context(), base, unsigned(base)); err != nil {
		t.Fatal(err)
	}
	if err := asks(t, base, 1).store(t, g); err != nil {
		t.Error(err)
	}
}

// Of writers at the same time one wins, with its own key and record.
func TestStoreStepAtOnce(t *testing.T) {
	t.Parallel()
	d := pgtest.New(t)
	owner := d.Open(t, migrations.RoleOwner)
	g := gateway(t, d)
	base := supplied(t, home)
	if err := registrar(t, d).StoreLegalFile(t.Context(), base, unsigned(base)); err != nil {
		t.Fatal(err)
	}
	const writers = 6
	errs := make([]error, writers)
	var wg sync.WaitGroup
	for i := range writers {
		a := asks(t, base, byte(i))
		wg.Go(func() { errs[i] = a.store(t, g) })
	}
	wg.Wait()
	won := -1
	for i, err := range errs {
		switch {
		case err == nil && won < 0:
			won = i
		case err == nil:
			t.Error("two writers of one version succeeded")
		case !errors.Is(err, postgres.ErrConflict):
			t.Errorf("%v, want ErrConflict", err)
		}
	}
	if got := value(t, owner, whole); won < 0 || got != "2 2 1 1" {
		t.Fatalf("stored %s", got)
	}
	if k, err := g.IdempotencyKey(t.Context(), alpha, sha256.Sum256([]byte{byte(won)})); err != nil || k == nil {
		t.Errorf("the winner's key: %+v, %v", k, err)
	}
}

// Whatever becomes of the connection, all of a step is there or nothing, and
// its key tells which.
func TestStoreStepFaults(t *testing.T) {
	t.Parallel()
	d := pgtest.New(t)
	owner := d.Open(t, migrations.RoleOwner)
	p := newProxy(t, d.Socket())
	c := p.through(d, migrations.RoleGateway)
	c.StatementTimeout = 500 * time.Millisecond
	g, err := postgres.NewGateway(t.Context(), c)
	g = closing(t, g, err)
	r := registrar(t, d)
	for n, c := range []struct {
		name   string
		fault  fault
		on     string
		stored bool
	}{
		{"lost before the file", lost, "INSERT INTO legal_file", false},
		{"answer to the file lost", unanswered, "INSERT INTO legal_file", false},
		{"lost before the index", lost, "INSERT INTO consent", false},
		{"lost before the key", lost, "INSERT INTO idempotency_key", false},
		{"answer to the key lost", unanswered, "INSERT INTO idempotency_key", false},
		{"lost before the record", lost, "kluis/access-record", false},
		{"answer to the record lost", unanswered, "kluis/access-record", false},
		{"lost before the commit", lost, "COMMIT", false},
		{"answer to the commit lost", unanswered, "COMMIT", true},
		{"frozen at the key", frozen, "INSERT INTO idempotency_key", false},
	} {
		of := ean(n + 10)
		base := supplied(t, of)
		if err := r.StoreLegalFile(t.Context(), base, unsigned(base)); err != nil {
			t.Fatal(err)
		}
		if err := g.Database(t.Context()); err != nil {
			t.Fatalf("%s: the pool did not recover: %v", c.name, err)
		}
		a := asks(t, base, byte(n))
		p.arm(c.fault, c.on)
		if err := a.store(t, g); !errors.Is(err, postgres.ErrUnavailable) {
			t.Errorf("%s: %v, want ErrUnavailable", c.name, err)
		}
		if p.hits() == 0 {
			t.Fatalf("%s: the fault did not strike", c.name)
		}
		want := "1 1 0 0"
		if c.stored {
			want = "2 2 1 1"
		}
		got := value(t, owner, `SELECT concat_ws(' ', (SELECT count(*) FROM legal_file WHERE ean = $1), (SELECT count(*) FROM consent WHERE ean = $1),
			(SELECT count(*) FROM idempotency_key WHERE key_digest = $2), (SELECT count(*) FROM access_log WHERE ean = $1))`, of.Int64(), a.key.Key[:])
		if got != want {
			t.Errorf("%s: stored %s, want %s", c.name, got, want)
		}
		if c.fault == frozen {
			return // nothing passes any more
		}
		if k, err := g.IdempotencyKey(t.Context(), alpha, a.key.Key); err != nil || (k != nil) != c.stored {
			t.Errorf("%s: the key says %+v, %v", c.name, k, err)
		}
		err := a.store(t, g)
		if c.stored && !errors.Is(err, postgres.ErrConflict) || !c.stored && err != nil {
			t.Errorf("%s: again: %v", c.name, err)
		}
	}
}
