package e2e

import (
	"crypto/sha256"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"kluis/authz"
	"kluis/cmd/kluis/backend"
	"kluis/ingest"
	"kluis/internal/config"
	"kluis/internal/devpki"
	"kluis/meter"
)

// lab is what a test needs to make suppliers and metering points of its own,
// of which it knows every value: the operator's connections, from within.
type lab struct {
	*world
	operator config.Operator
	profile  *meter.Profile
	reg      *backend.Registrar
	in       *backend.Ingest
}

func (w *world) lab(t testing.TB) *lab {
	t.Helper()
	l := &lab{world: w}
	var err error
	if l.operator, err = config.Load[config.Operator](filepath.Join(w.state, "kluis.yaml")); err != nil {
		t.Fatal(err)
	}
	if l.profile, err = backend.Profile(l.operator); err != nil {
		t.Fatal(err)
	}
	if l.reg, err = backend.OpenRegistrar(t.Context(), l.operator); err != nil {
		t.Fatal(err)
	}
	if l.in, err = backend.OpenIngest(t.Context(), l.operator); err != nil {
		t.Fatal(errors.Join(err, l.reg.Close()))
	}
	t.Cleanup(func() {
		if err := errors.Join(l.reg.Close(), l.in.Close()); err != nil {
			t.Error(err)
		}
	})
	return l
}

// The numbers of a test's own metering points and suppliers, beside the
// demo's.
var labEANs, labGLNs atomic.Int64

func labEAN() string { return withCheckDigit(fmt.Sprintf("87168799%09d", labEANs.Add(1))) }
func labGLN() string { return withCheckDigit(fmt.Sprintf("871299%06d", labGLNs.Add(1))) }

// withCheckDigit appends the GS1 check digit (General Specifications, 7.9).
func withCheckDigit(digits string) string {
	sum := 0
	for i := range len(digits) {
		weight := 1 + 2*((len(digits)-i)%2)
		sum += weight * int(digits[i]-'0')
	}
	return fmt.Sprintf("%s%d", digits, (10-sum%10)%10)
}

// vendor is a supplier of the test's own.
type vendor struct {
	*caller
	gln      meter.GLN
	certFile string
}

func (l *lab) vendor(t testing.TB) vendor {
	t.Helper()
	gln, err := meter.ParseGLN(labGLN())
	if err != nil {
		t.Fatal(err)
	}
	name := "vendor-" + gln.String()
	certFile, keyFile, err := l.supplierCA.IssueFiles(t.TempDir(), name, devpki.Leaf{CommonName: name})
	if err != nil {
		t.Fatal(err)
	}
	cert, err := tls.LoadX509KeyPair(certFile, keyFile)
	if err != nil {
		t.Fatal(err)
	}
	_, err = l.reg.ChangeSupplier(t.Context(), gln, func(*authz.Supplier) (authz.SupplierFacts, error) {
		return authz.SupplierFacts{GLN: gln, Name: name, Scopes: []string{"readings:read"}, Certificates: []authz.Certificate{certificateOf(cert)}}, nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return vendor{l.caller(t, gln.String(), &cert), gln, certFile}
}

func certificateOf(c tls.Certificate) authz.Certificate {
	return authz.Certificate{Thumbprint: sha256.Sum256(c.Certificate[0]), NotAfter: c.Leaf.NotAfter.UTC()}
}

// home is a metering point with a few days of readings around the beginning of
// a month. The quarter-hours of the day after turn were corrected once.
type home struct {
	l              *lab
	ean            meter.EAN
	of             vendor
	first, turn    meter.Day // turn is the first day of a month
	last           meter.Day // exclusive; there is a closing read
	consent        [16]byte
	corrected, old map[string]string // see seen.values; old is before the correction
}

var homeFields = []string{"import_low", "import_normal", "import_intervals"}

func (l *lab) home(t testing.TB, of vendor) *home {
	t.Helper()
	h := l.emptyHome(t, of)
	for _, version := range []int{1, 2} {
		if _, err := l.in.Days(t.Context(), []ingest.Point{h.blocks(t, version)}, ingest.Options{}); err != nil {
			t.Fatal(err)
		}
	}
	return h
}

// emptyHome has the facts and no readings.
func (l *lab) emptyHome(t testing.TB, of vendor) *home {
	t.Helper()
	text := labEAN()
	l.secrets.add("an EAN", text)
	ean, err := meter.ParseEAN(text)
	if err != nil {
		t.Fatal(err)
	}
	today := meter.DayOf(time.Now(), l.profile.Location())
	turn := (today.Month() - 1).First()
	h := &home{l: l, ean: ean, of: of, first: turn - 3, turn: turn, last: turn + 3, old: map[string]string{}, corrected: map[string]string{}}
	id := sha256.Sum256([]byte(text))
	copy(h.consent[:], id[:])
	h.step(t,
		authz.Register{EAN: ean, Commodity: meter.Electricity},
		authz.SetOccupancy{Days: meter.DayRange{From: turn - 60, To: meter.MaxDay}},
		authz.SetSupply{Supplier: of.gln, Days: meter.DayRange{From: turn - 60, To: meter.MaxDay}},
		authz.GrantConsent{ID: h.consent, Supplier: of.gln, Purpose: meter.EnergyManagement, Classes: []meter.Class{meter.Intervals},
			Granularity: meter.PT15M, Days: meter.DayRange{From: turn - 60, To: meter.MaxDay},
			ValidUntil: time.Now().AddDate(1, 0, 0).UTC().Truncate(time.Second), Evidence: "test"})
	return h
}

// step takes legal steps.
func (h *home) step(t testing.TB, steps ...authz.Step) {
	t.Helper()
	_, err := h.l.reg.ChangeLegalFile(t.Context(), h.ean, func(*authz.LegalFile) ([]authz.Step, error) { return steps, nil })
	if err != nil {
		t.Fatal(err)
	}
}

// blocks are all the days of a home. Its values are like those of no other,
// and h.old and h.corrected have them as a supplier sees them.
func (h *home) blocks(t testing.TB, version int) ingest.Point {
	t.Helper()
	p := ingest.Point{EAN: h.ean}
	own := h.ean.Int64() / 10 % 1000
	for _, name := range homeFields {
		f, ok := h.l.profile.Field(name)
		if !ok {
			t.Fatal(name)
		}
		for d := h.first; d < h.last || d == h.last && f.Class == meter.Registers; d++ {
			b := meter.Block{Day: d, Resolution: meter.P1D, Start: meter.Null, Values: []meter.Value{
				meter.Value(int64(f.Code)*1_000_000 + own*10_000 + int64(d-h.first)*1234 + 1)}}
			if f.Class == meter.Intervals {
				b.Resolution, b.Start = meter.PT15M, meter.Value(own*1000+int64(d-h.first)*50_000)
				b.Values = make([]meter.Value, meter.Slots(d, meter.PT15M, h.l.profile.Location()))
				for i := range b.Values {
					b.Values[i] = meter.Value(1 + (own*31+int64(d)*17+int64(i)*7)%900)
					if version == 1 && d == h.turn+1 {
						b.Values[i] += 1000
					}
				}
			}
			p.Blocks = append(p.Blocks, ingest.FieldBlock{Field: f.Code, Block: b})
			texts := make([]string, len(b.Values))
			for i, v := range b.Values {
				texts[i] = string(meter.AppendValue(nil, v, f.Precision))
			}
			into := h.corrected
			if version == 1 {
				into = h.old
			}
			into[dayKey(name, d)] = strings.Join(texts, " ")
		}
	}
	return p
}

func dayKey(field string, d meter.Day) string { return field + " " + d.String() }

// path asks for everything of the home.
func (h *home) path() string {
	return readingsPath(h.ean.String(), h.first.String(), h.last.String(), "ENERGY_MANAGEMENT", "fields", strings.Join(homeFields, ","))
}

// under lists the days of the blocks under one data key.
func (h *home) under(c meter.Class, m meter.Month) []string {
	var keys []string
	for _, name := range homeFields {
		f, _ := h.l.profile.Field(name)
		for d := h.first; d <= h.last; d++ {
			if _, ok := h.corrected[dayKey(name, d)]; ok && f.Class == c && d.Month() == m {
				keys = append(keys, dayKey(name, d))
			}
		}
	}
	return keys
}

// seen is what an answer with readings says.
type seen struct {
	id       string
	values   map[string]string // by field and day; null for a gap
	withheld []string          // "field from to reason", sorted
	body     []byte
}

type wireReadings struct {
	InteractionID string
	Series        []struct {
		Field, LegalBasis, Resolution, ReadingKind string
		ExpectedCount, DeliveredCount              int
		Days                                       []struct {
			Start  string
			Values []*string
		}
	}
	Withheld []struct{ Field, From, To, Reason string }
}

func seenIn(t testing.TB, a answer) seen {
	t.Helper()
	if a.status != http.StatusOK {
		t.Fatalf("%d: %s", a.status, a.body)
	}
	var r wireReadings
	if err := json.Unmarshal(a.body, &r); err != nil {
		t.Fatal(err)
	}
	s := seen{id: r.InteractionID, values: map[string]string{}, body: a.body}
	for _, series := range r.Series {
		known, all := 0, 0
		for _, d := range series.Days {
			texts := make([]string, len(d.Values))
			for i, v := range d.Values {
				all++
				if texts[i] = "null"; v != nil {
					texts[i] = *v
					known++
				}
			}
			s.values[series.Field+" "+d.Start[:10]] = strings.Join(texts, " ")
		}
		if known != series.DeliveredCount || all != series.ExpectedCount {
			t.Errorf("%s has %d of %d values and says %d of %d", series.Field, known, all, series.DeliveredCount, series.ExpectedCount)
		}
	}
	for _, w := range r.Withheld {
		s.withheld = append(s.withheld, fmt.Sprint(w.Field, " ", w.From, " ", w.To, " ", w.Reason))
	}
	slices.Sort(s.withheld)
	return s
}

// gaps is what is seen when the days of keys are gaps.
func gaps(values map[string]string, keys ...string) map[string]string {
	out := maps.Clone(values)
	for _, k := range keys {
		out[k] = strings.TrimSuffix(strings.Repeat("null ", 1+strings.Count(out[k], " ")), " ")
	}
	return out
}

// runs lists days as answers withhold them.
func runs(t testing.TB, reason string, keys ...string) []string {
	t.Helper()
	keys = slices.Sorted(slices.Values(keys))
	var out []string
	for i := 0; i < len(keys); {
		field, from, _ := strings.Cut(keys[i], " ")
		d, err := meter.ParseDay(from)
		if err != nil {
			t.Fatal(err)
		}
		for i++; i < len(keys) && keys[i] == dayKey(field, d+1); i++ {
			d++
		}
		out = append(out, fmt.Sprint(field, " ", from, " ", d+1, " ", reason))
	}
	slices.Sort(out)
	return out
}

func (s seen) want(t testing.TB, values map[string]string, withheld []string) {
	t.Helper()
	for _, k := range slices.Sorted(maps.Keys(values)) {
		if got, ok := s.values[k]; !ok || got != values[k] {
			t.Errorf("%s: %q, want %q", k, got, values[k])
		}
	}
	for k, got := range s.values {
		if _, ok := values[k]; !ok {
			t.Errorf("%s was not expected: %q", k, got)
		}
	}
	if !slices.Equal(s.withheld, withheld) {
		t.Errorf("withheld %q, want %q", s.withheld, withheld)
	}
}

// fetch sends GET with a token of the issuer.
func (c *caller) fetch(t testing.TB, path string) answer {
	t.Helper()
	return c.get(t, path, "Bearer "+c.accessToken(t))
}

// problem is an answer without data.
func (a answer) problem(t testing.TB, status int, slug string) {
	t.Helper()
	if a.status != status || a.slug() != slug {
		t.Errorf("answered %d %s, want %d %s: %s", a.status, a.slug(), status, slug, a.body)
	}
	retry := a.header.Get("Retry-After")
	if again := status == http.StatusServiceUnavailable || status == http.StatusGatewayTimeout; (retry != "") != again {
		t.Errorf("%d with Retry-After %q", a.status, retry)
	}
}

// sql runs a statement as superuser and wants it to touch so many rows.
func (w *world) sql(t testing.TB, rows int64, query string, args ...any) {
	t.Helper()
	res, err := w.db.ExecContext(t.Context(), query, args...)
	if err != nil {
		t.Fatalf("%s: %v", query, err)
	}
	if n, err := res.RowsAffected(); err != nil || n != rows {
		t.Fatalf("%s: %d rows (%v), want %d", query, n, err, rows)
	}
}

// one is the single value of a query.
func one[T any](t testing.TB, w *world, query string, args ...any) T {
	t.Helper()
	var v T
	if err := w.db.QueryRowContext(t.Context(), query, args...).Scan(&v); err != nil {
		t.Fatalf("%s: %v", query, err)
	}
	return v
}

// keep remembers rows, and returns how to put them back as they were.
func (w *world) keep(t testing.TB, key string, value int64, tables ...string) (restore func()) {
	t.Helper()
	rows := map[string]string{}
	for _, table := range tables {
		rows[table] = one[string](t, w, fmt.Sprintf(`SELECT coalesce(json_agg(r), '[]')::text FROM %s r WHERE %s = $1`, table, key), value)
	}
	return func() {
		t.Helper()
		tx, err := w.db.Begin()
		if err != nil {
			t.Fatal(err)
		}
		defer tx.Rollback()
		for _, table := range tables {
			if _, err := tx.Exec(fmt.Sprintf(`DELETE FROM %s WHERE %s = $1`, table, key), value); err != nil {
				t.Fatal(err)
			}
			if _, err := tx.Exec(fmt.Sprintf(`INSERT INTO %[1]s SELECT * FROM json_populate_recordset(NULL::%[1]s, $1)`, table), rows[table]); err != nil {
				t.Fatal(err)
			}
		}
		if err := tx.Commit(); err != nil {
			t.Fatal(err)
		}
	}
}

// kluisFails runs the operator's command, which must end with this exit code,
// and returns what it complains of.
func (w *world) kluisFails(t testing.TB, code int, args ...string) string {
	t.Helper()
	out, err := w.tryKluis(t.Context(), args...)
	if got := exitCodeOf(err); got != code {
		t.Fatalf("kluis %v: exit code %d, want %d: %v\n%s", args, got, code, err, out)
	}
	return fmt.Sprint(err)
}

func exitCodeOf(err error) int {
	var e interface{ ExitCode() int }
	switch {
	case err == nil:
		return 0
	case errors.As(err, &e):
		return e.ExitCode()
	}
	return -1
}

// writeTemp puts a file into the test's folder.
func writeTemp(t testing.TB, name, content string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// within waits for something that other processes do in their own time.
func within(t testing.TB, d time.Duration, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(d); !ok(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not within %s: %s", d, what)
		}
	}
}

// sure is for what can only fail when the test itself is wrong.
func sure[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// tempUnder is a folder of a world's for the logs of one more program: they are
// searched when the world stops.
func tempUnder(t testing.TB, parent string) string {
	t.Helper()
	dir, err := os.MkdirTemp(parent, "beside-")
	if err != nil {
		t.Fatal(err)
	}
	return dir
}
