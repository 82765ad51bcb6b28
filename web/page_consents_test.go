package web

import (
	"encoding/base64"
	"net/http"
	"testing"
	"time"

	"kluis/meter"
	"kluis/openapi/client"
)

func testProfile(t *testing.T) *meter.Profile {
	t.Helper()
	p, err := meter.ParseProfile(meter.NL())
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func mustDay(t *testing.T, s string) meter.Day {
	t.Helper()
	d, err := meter.ParseDay(s)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// TestScopeDigest: the example of docs/CONSENT.md, out of the form that an employee
// fills in.
func TestScopeDigest(t *testing.T) {
	t.Parallel()
	ean, err := meter.ParseEAN("871685900000000011")
	if err != nil {
		t.Fatal(err)
	}
	f := consentForm{Supplier: "8712345600020", Granularity: "PT1H", Classes: []string{"intervals"}, From: "2025-07-01", Until: "2026-12-31", Evidence: "contract/2026-3"}
	n, errs := f.parse(ean, testProfile(t))
	if len(errs) > 0 {
		t.Fatal(errs)
	}
	// The form ends at local midnight; the example at midnight UTC.
	if want := time.Date(2026, 12, 31, 23, 0, 0, 0, time.UTC); !n.ValidUntil.Equal(want) {
		t.Errorf("valid until %s, want %s", n.ValidUntil, want)
	}
	n.ValidUntil = time.Date(2027, 1, 1, 0, 0, 0, 0, time.UTC)
	sum := scopeDigest(n)
	if got, want := base64.RawURLEncoding.EncodeToString(sum[:]), "SDpixLnUyjtjZ_MA-ejy08GrtUYBCBcUDULH0fWORR0"; got != want {
		t.Errorf("digest %s, want %s", got, want)
	}
}

func TestConsentForm(t *testing.T) {
	t.Parallel()
	ean, err := meter.ParseEAN("871685900000000011")
	if err != nil {
		t.Fatal(err)
	}
	profile := testProfile(t)
	good := consentForm{Supplier: "8712345600020", Granularity: "PT15M", Classes: []string{"intervals", "registers"}, From: "2026-03-29", To: "2026-03-29", Until: "2026-10-25", Evidence: "call-1"}
	n, errs := good.parse(ean, profile)
	if len(errs) > 0 {
		t.Fatal(errs)
	}
	if n.Classes[0] != client.Registers || n.To == nil || n.To.String() != "2026-03-30" || !n.ValidUntil.Equal(time.Date(2026, 10, 25, 23, 0, 0, 0, time.UTC)) {
		t.Errorf("one day, both classes, until the day that summer time ends: %+v", n)
	}
	for field, f := range map[string]consentForm{
		"supplier":    {Supplier: "8712345600021", Granularity: "PT15M", Classes: []string{"intervals"}, From: "2026-03-29", Until: "2026-10-25", Evidence: "c"},
		"classes":     {Supplier: "8712345600020", Granularity: "PT15M", Classes: []string{"intervals", "identity"}, From: "2026-03-29", Until: "2026-10-25", Evidence: "c"},
		"granularity": {Supplier: "8712345600020", Granularity: "PT1S", Classes: []string{"intervals"}, From: "2026-03-29", Until: "2026-10-25", Evidence: "c"},
		"from":        {Supplier: "8712345600020", Granularity: "PT15M", Classes: []string{"intervals"}, From: "29-3-2026", Until: "2026-10-25", Evidence: "c"},
		"to":          {Supplier: "8712345600020", Granularity: "PT15M", Classes: []string{"intervals"}, From: "2026-03-29", To: "2026-03-28", Until: "2026-10-25", Evidence: "c"},
		"until":       {Supplier: "8712345600020", Granularity: "PT15M", Classes: []string{"intervals"}, From: "2026-03-29", Evidence: "c"},
		"evidence":    {Supplier: "8712345600020", Granularity: "PT15M", Classes: []string{"intervals"}, From: "2026-03-29", Until: "2026-10-25", Evidence: "two\nlines"},
	} {
		if _, errs := f.parse(ean, profile); len(errs) != 1 || errs[field] == "" {
			t.Errorf("a form that is wrong in %s is told %v", field, errs)
		}
	}
	if _, errs := (consentForm{}).parse(ean, profile); len(errs) != 6 {
		t.Errorf("an empty form is told %v", errs)
	}
}

func TestChangesOf(t *testing.T) {
	t.Parallel()
	profile := testProfile(t)
	grant := func(field, from, to string, basis client.LegalBasis) client.AccessGranted {
		return client.AccessGranted{Field: field, From: *apiDay(mustDay(t, from)), To: *apiDay(mustDay(t, to)), LegalBasis: basis, Granularity: "PT15M", Purpose: client.PurposeENERGYMANAGEMENT}
	}
	daily := []client.AccessGranted{
		grant("import_low", "2026-01-01", "2026-04-01", client.LegalBasisSUPPLYDAILY), grant("import_normal", "2026-01-01", "2026-04-01", client.LegalBasisSUPPLYDAILY),
	}
	consent := append([]client.AccessGranted{
		grant("import_intervals", "2026-02-01", "2026-04-01", client.LegalBasisCONSENT), grant("export_intervals", "2026-02-01", "2026-04-01", client.LegalBasisCONSENT),
	}, daily...)

	d := changesOf(&client.ConsentPreview{Allowed: true, Before: daily, After: consent}, profile)
	if len(d.Lines) != 2 || d.None || d.Lines[0].State != "new" || d.Lines[0].Class != "intervals" || d.Lines[0].To.String() != "2026-03-31" || d.Lines[1].State != "same" {
		t.Errorf("a grant: %+v", d)
	}
	d = changesOf(&client.ConsentPreview{Allowed: true, Before: consent, After: daily}, profile)
	if len(d.Lines) != 2 || d.None || d.Lines[0].State != "gone" {
		t.Errorf("a revocation: %+v", d)
	}
	d = changesOf(&client.ConsentPreview{Allowed: true, Before: daily, After: daily}, profile)
	if !d.None || len(d.Lines) != 1 {
		t.Errorf("nothing changes: %+v", d)
	}
	why, strange := "consent-not-possible", "something-new"
	if d = changesOf(&client.ConsentPreview{Why: &why}, profile); d.Why == nil || d.Why.Name != why || d.Why.Status != http.StatusConflict {
		t.Errorf("refused: %+v", d.Why)
	}
	if d = changesOf(&client.ConsentPreview{Why: &strange}, profile); d.Why == nil || d.Why.Name != "not-permitted" {
		t.Errorf("refused for what has no words: %+v", d.Why)
	}
}

func TestSortConsents(t *testing.T) {
	t.Parallel()
	to := apiDay(mustDay(t, "2026-04-01"))
	var list []client.Consent
	for _, s := range []client.ConsentState{"REQUESTED", "ACTIVE", "REJECTED", "REVOKED", "EXPIRED", "LAPSED", "ENDED_BY_MOVE"} {
		list = append(list, client.Consent{State: s, Supplier: "8712345600020", To: to})
		if _, ok := allTexts["consent."+string(s)]; !ok {
			t.Errorf("no word for a consent that is %s", s)
		}
	}
	d := sortConsents(list, map[string]string{"8712345600020": "<b>Stroom & Co</b>"})
	if len(d.Open) != 1 || len(d.Active) != 1 || len(d.Ended) != 5 {
		t.Errorf("%d open, %d active, %d ended", len(d.Open), len(d.Active), len(d.Ended))
	}
	if row := d.Open[0]; row.SupplierName != "<b>Stroom & Co</b>" || row.LastDay.String() != "2026-03-31" {
		t.Errorf("row %+v", row)
	}
	if row := sortConsents(list, nil).Open[0]; row.SupplierName != "" {
		t.Error("a name where none is known")
	}
}

func TestSupplying(t *testing.T) {
	t.Parallel()
	today := mustDay(t, "2026-04-02")
	day := func(s string) *client.SupplyPeriod {
		return &client.SupplyPeriod{From: *apiDay(mustDay(t, s))}
	}
	ended, present, future := day("2024-01-01"), day("2025-01-01"), day("2026-05-01")
	ended.Supplier, ended.To = "1", apiDay(today)
	present.Supplier, future.Supplier = "2", "3"
	c := &client.Connection{Supply: []client.SupplyPeriod{*ended, *present, *future}, Suppliers: []client.SupplierName{{Gln: "1"}, {Gln: "2"}, {Gln: "3"}, {Gln: "4"}}}
	got := supplying(c, today)
	if len(got) != 2 || got[0].Gln != "2" || got[1].Gln != "3" {
		t.Errorf("%+v", got)
	}
}
