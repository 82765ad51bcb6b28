package e2e

import (
	"encoding/json"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"kluis/authz"
	"kluis/cryptoserver/control"
	"kluis/meter"

	"github.com/lib/pq"
)

// TestRevocationNow: the next request after the commit is refused; seconds
// later the control feed has it, and from then on not even the database's
// superuser brings the right back.
func TestRevocationNow(t *testing.T) {
	t.Parallel()
	l := sharedWorld(t).lab(t)
	v := l.vendor(t)
	h := l.home(t, v)
	h.intact(t)
	consented := slices.DeleteFunc(slices.Clone(keysOf(h)), func(k string) bool { return !strings.HasPrefix(k, "import_intervals") })

	began := time.Now()
	h.step(t, authz.RevokeConsent{ID: h.consent}) // returns when it is committed
	committed := time.Now()
	s := seenIn(t, v.fetch(t, h.path()))
	for _, k := range consented {
		if got, ok := s.values[k]; ok {
			t.Errorf("%s was given after the revocation: %.20s", k, got)
		}
	}
	if want := runs(t, "CONSENT_REVOKED", consented...); !slices.Equal(s.withheld, want) {
		t.Errorf("withheld %q, want %q", s.withheld, want)
	}
	t.Logf("sealed and committed in %s; the next request was refused %s later", committed.Sub(began).Round(time.Millisecond), time.Since(committed).Round(time.Millisecond))

	l.awaitMinimum(t, h.ean, 5)

	// A superuser deletes the revocation; the server's own memory may still be
	// within its grace, so nothing but the feed refuses.
	ean := h.ean.Int64()
	restore := l.keep(t, "ean", ean, "legal_file")
	const putBack = `DELETE FROM legal_file WHERE ean = $1 AND version = 5`
	told := time.Time{}
	for end := committed.Add(30 * time.Second); told.IsZero(); {
		if time.Now().After(end) {
			t.Fatal("the cryptoservers never had it")
		}
		l.sql(t, 1, putBack, ean)
		a := v.fetch(t, h.path())
		if a.status == http.StatusInternalServerError && strings.Contains(string(a.body), "evidence-invalid") {
			told = time.Now()
		}
		restore()
		time.Sleep(100 * time.Millisecond)
	}
	t.Logf("the older file was refused by the control feed %s after the commit", told.Sub(committed).Round(time.Millisecond))
	for range 3 {
		s := seenIn(t, v.fetch(t, h.path()))
		if want := runs(t, "CONSENT_REVOKED", consented...); !slices.Equal(s.withheld, want) {
			t.Errorf("with the row put back: withheld %q, want %q", s.withheld, want)
		}
	}

	// What is behind is found, with its number.
	l.sql(t, 1, putBack, ean)
	var found struct {
		Checked int
		Behind  []struct {
			Kind, Subject   string
			Newest, Minimum uint64
		}
	}
	out, err := l.tryKluis(t.Context(), "keys", "facts", "--json")
	if exitCodeOf(err) != 3 {
		t.Errorf("exit code %d, want 3: %v", exitCodeOf(err), err)
	}
	if err := json.Unmarshal([]byte(out), &found); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	mine := slices.IndexFunc(found.Behind, func(b struct {
		Kind, Subject   string
		Newest, Minimum uint64
	}) bool {
		return b.Kind == "legal_file" && b.Subject == h.ean.String() && b.Newest == 4 && b.Minimum == 5
	})
	if mine < 0 || found.Checked == 0 {
		t.Errorf("%+v", found)
	}
	restore()
	if s := seenIn(t, v.fetch(t, h.path())); len(s.withheld) == 0 {
		t.Error("nothing is withheld")
	}
}

func keysOf(h *home) (keys []string) {
	for _, name := range homeFields {
		for d := h.first; d < h.last; d++ {
			keys = append(keys, dayKey(name, d))
		}
	}
	return keys
}

// awaitMinimum waits until the control feed says that no version of a legal file
// before this one counts. The custodian looks at a row once: whoever takes one
// away must let it look first.
func (l *lab) awaitMinimum(t *testing.T, ean meter.EAN, version uint64) {
	t.Helper()
	for end := time.Now().Add(30 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		var entries pq.ByteaArray
		if err := l.db.QueryRowContext(t.Context(), `SELECT array_agg(entry ORDER BY sequence) FROM control_entry`).Scan(&entries); err != nil {
			t.Fatal(err)
		}
		for _, b := range entries {
			e, err := control.ParseEntry(b)
			if err != nil {
				t.Fatal(err)
			}
			if slices.ContainsFunc(e.Files, func(m control.FileMinimum) bool { return m.EAN == ean && m.Version >= version }) {
				return
			}
		}
		if time.Now().After(end) {
			t.Fatal("the feed never had it")
		}
	}
}
