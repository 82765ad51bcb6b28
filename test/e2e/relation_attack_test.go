package e2e

import (
	"fmt"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"testing"

	"kluis/internal/audit"
	"kluis/meter"
)

// ean is an EAN-18 that the demo does not have.
func ean(digits string) string {
	for check := range 10 {
		s := fmt.Sprintf("%s%d", digits, check)
		if _, err := meter.ParseEAN(s); err == nil {
			return s
		}
	}
	panic("17 digits have one check digit")
}

// An unknown metering point and one the caller has nothing to do with cannot
// be told apart: the same answer but for the id, the same statements, the
// same calls to a cryptoserver (none), the same kind of row in the log; by
// readings, and by the dry run. Guard: server.readings and server.access take
// both the same way.
func TestUnknownAndForeignMeteringPointAreAlike(t *testing.T) {
	t.Parallel()
	w := sharedWorld(t)
	side := w.sidecar(t)
	c := w.supplier(t, 0).at(t, side.url)
	token := c.accessToken(t)
	other := w.ready.Suppliers[1].ID
	foreign := w.point(t, func(p readyPoint) bool {
		return p.Commodity == "electricity" && supplies(p, other) && !supplies(p, c.clientID)
	})
	foreignGas := w.point(t, func(p readyPoint) bool {
		return p.Commodity == "gas" && supplies(p, other) && !supplies(p, c.clientID)
	})
	mine := w.point(t, func(p readyPoint) bool { return supplies(p, c.clientID) })
	unknown := ean("87168799900000001")
	w.secrets.add("an EAN", unknown)

	type seen struct {
		status int
		header string
		body   string
		sql    string
		calls  float64
		row    string
		record int // bytes
	}
	const dryRun = "dry run"
	// Others than the gateway call a cryptoserver too: with the feed, for the journal.
	const opened = `^kluis_cryptoserver_calls_total\{.*method="Open`
	ids := regexp.MustCompile(`"interactionId":"[0-9a-f-]{36}"`)
	look := func(t *testing.T, ean string, more ...string) seen {
		before := scrape(t, side.cryptoMetrics).sum(opened)
		side.sql.taken()
		path := readingsPath(ean, "2026-01-01", "2026-02-01", "BILLING", more...)
		if slices.Contains(more, dryRun) {
			path = "/v1/metering-points/" + ean + "/access?" + strings.Join(more[1:], "&")
		}
		a := c.with(t, token, path)
		s := seen{status: a.status, body: ids.ReplaceAllString(string(a.body), "ID"), sql: strings.Join(side.sql.taken(), "\n")}
		s.calls = scrape(t, side.cryptoMetrics).sum(opened) - before
		for _, k := range slices.Sorted(mapKeys(a.header)) {
			if k != "Date" && k != "X-Interaction-Id" && k != "Ratelimit" {
				s.header += fmt.Sprint(k, a.header[k], "\n")
			}
		}
		r := w.onlyRow(t, a.header.Get("X-Interaction-Id"))
		s.row = fmt.Sprint(r.Operation, " ", r.Outcome, " ", r.Purpose, r.Days, r.Fields, r.Resolution, r.Kind, r.LegalFile, r.FileVersion, r.Profile, r.Granted, r.Withheld, r.Receipt)
		encoded, err := r.Encode()
		if err != nil {
			t.Fatal(err)
		}
		s.record = len(encoded)
		return s
	}
	for name, more := range map[string][]string{
		"all fields":       nil,
		"fields of gas":    {"fields", "gas"},
		"a class":          {"class", "intervals"},
		"a resolution":     {"resolution", "PT15M", "kind", "CONSUMPTION"},
		"field by field":   {"fields", "import_low,import_normal"},
		"registers by day": {"class", "registers", "resolution", "P1D", "kind", "REGISTER"},
		"dry run":          {dryRun},
		"dry run, billing": {dryRun, "purpose=BILLING", "from=2026-01-01", "to=2026-02-01"},
	} {
		t.Run(name, func(t *testing.T) {
			want := look(t, unknown, more...)
			if want.status != http.StatusNotFound || !strings.Contains(want.body, "urn:kluis:problem:metering-point-not-found") || want.calls != 0 {
				t.Fatalf("unknown: %+v", want)
			}
			operation := audit.Readings
			if slices.Contains(more, dryRun) {
				operation = audit.DryRun
			}
			if !strings.HasPrefix(want.row, fmt.Sprint(operation, " ", audit.NoRelation)) || !strings.Contains(want.sql, "legal_file") || !strings.Contains(want.sql, "access_log") {
				t.Errorf("unknown: %+v", want)
			}
			for kind, point := range map[string]string{"foreign": foreign.EAN, "foreign gas": foreignGas.EAN} {
				if got := look(t, point, more...); got != want {
					t.Errorf("%s: \n%+v\nunknown:\n%+v", kind, got, want)
				}
			}
		})
	}
	// The counters can tell a difference where there is one.
	got := look(t, mine.EAN)
	if got.status != http.StatusOK || got.calls == 0 || !strings.Contains(got.sql, "sealed_block") {
		t.Errorf("the caller's own: %d, %v calls\n%s", got.status, got.calls, got.sql)
	}
	// A dry run of the caller's own looks which days there are, and opens none.
	got = look(t, mine.EAN, dryRun)
	if got.status != http.StatusOK || got.calls != 0 || !strings.Contains(got.sql, "sealed_block") || strings.Contains(got.sql, "ciphertext") ||
		!strings.HasPrefix(got.row, fmt.Sprint(audit.DryRun, " ", audit.Given)) {
		t.Errorf("a dry run of the caller's own: %d, %v calls\n%s", got.status, got.calls, got.sql)
	}
}

// In the list, too, there is nothing of others. Guard: the query by supplier;
// the legal file behind it is attacked by an index row added by hand.
func TestListHoldsNothingOfOthers(t *testing.T) {
	t.Parallel()
	w := sharedWorld(t)
	const gln = "8712000000134"
	c, _ := w.newSupplier(t, gln)
	res, err := c.api.ListMeteringPointsWithResponse(t.Context(), nil)
	if err != nil || res.JSON200 == nil || len(res.JSON200.MeteringPoints) != 0 || res.JSON200.Links.Next != nil {
		t.Errorf("a supplier without customers: %s %v", res.Body, err)
	}
	for n := range 2 {
		c := w.supplier(t, n)
		for _, p := range listAll(t, c, 1000) {
			i := slices.IndexFunc(w.ready.MeteringPoints, func(r readyPoint) bool { return r.EAN == p.Ean })
			if i >= 0 && !supplies(w.ready.MeteringPoints[i], c.clientID) {
				t.Errorf("supplier %d is told of a metering point that it may not read", n)
			}
		}
	}
}
