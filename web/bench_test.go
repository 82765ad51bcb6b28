package web

import (
	"context"
	"net/http"
	"net/http/httptest"
	"strconv"
	"testing"
	"time"

	"kluis/meter"
	"kluis/openapi/client"
)

// BenchmarkPage measures what the portal adds to the calls of the API, in two parts:
// "whole" is a page that makes none, through TLS, session and policy; the others
// make a page of what the API answered, render and compress it.
//
//	go test ./web -run '^$' -bench Page
func BenchmarkPage(b *testing.B) {
	o := newOffice(b)
	o.portal.pages = newBuckets(1e6, 1e6) // nobody clicks so often
	br := o.signIn("eva")
	b.Run("whole", func(b *testing.B) {
		for b.Loop() {
			if p := br.get("/"); p.StatusCode != http.StatusOK {
				b.Fatal(p.Status)
			}
		}
	})
	p := o.portal
	today := meter.DayOf(o.now(), p.profile.Location())
	name := "Polderstroom"
	s := client.SupplierName{Gln: "8712000000011", Name: &name}
	c := &client.Connection{
		Ean: ean, Commodity: "electricity", Identity: client.ConnectionIdentity{State: "NONE"}, Suppliers: []client.SupplierName{s},
		Supply: []client.SupplyPeriod{{Supplier: s.Gln, From: *apiDay(today - 300)}}, Occupancies: []client.DayPeriod{{From: *apiDay(today - 300)}},
	}
	var access client.Access
	for _, f := range p.profile.Fields(meter.Electricity) {
		access.Granted = append(access.Granted, client.AccessGranted{Field: f.Name, Granularity: client.P1D, LegalBasis: client.LegalBasisSUPPLYDAILY, Purpose: client.PurposeENERGYMANAGEMENT, From: *apiDay(today - 300), To: *apiDay(today)})
	}
	render := func(page string, data func() any) {
		b.Run(page, func(b *testing.B) {
			cs := &Case{ID: "0123456789abcdef0123456789abcdef", EAN: must(meter.ParseEAN(ean)), Reason: "ticket-4711"}
			for b.Loop() {
				v := &visit{Lang: "nl", Theme: "auto", Session: &session{Employee: Employee{Role: Agent, Name: "Eva"}}, Case: cs}
				r := httptest.NewRequestWithContext(context.WithValue(b.Context(), visitKey{}, v), "GET", "/c/x", nil)
				r.Header.Set("Accept-Encoding", "gzip")
				if err := p.page(httptest.NewRecorder(), r, page, data()); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
	rows := func() []supplierRights {
		return []supplierRights{rightsOf(&access, s, c, nil, p.profile, o.now())}
	}
	render("connection", func() any {
		return connectionData{Connection: c, Rights: rows(), Timeline: timelineOf(c, nil, today, p.profile.Location()), Fields: fieldsOf(c)}
	})
	render("access", func() any { return &accessData{Columns: columns, Rows: rows()} })
	for _, days := range []int{7, 365} {
		asked := readingsAsked{days: meter.DayRange{From: today - meter.Day(days), To: today}, detail: details[0]}
		series := client.Series{Field: "import_intervals", Resolution: client.PT15M, Unit: "kWh", ReadingKind: client.ReadingKindCONSUMPTION}
		for day := asked.days.From; day < asked.days.To; day++ {
			start, end := day.Start(p.profile.Location()), (day + 1).Start(p.profile.Location())
			d := client.DayValues{Start: start}
			for at := start; at.Before(end); at = at.Add(15 * time.Minute) {
				value := "0." + strconv.Itoa(100+int(at.Unix()/900*7919%900))
				d.Values = append(d.Values, &value)
			}
			series.Days = append(series.Days, d)
		}
		b.Run("readings of "+strconv.Itoa(days)+" days", func(b *testing.B) {
			for b.Loop() {
				shown, err := shownOf(&client.Readings{Series: []client.Series{series, series}}, asked, p.profile, "nl")
				if err != nil {
					b.Fatal(err)
				}
				v := &visit{Lang: "nl", Theme: "auto", Session: &session{Employee: Employee{Role: Agent, Name: "Eva"}}, Case: &Case{ID: "x"}}
				r := httptest.NewRequestWithContext(context.WithValue(b.Context(), visitKey{}, v), "POST", "/c/x/readings", nil)
				r.Header.Set("Accept-Encoding", "gzip")
				if err := p.page(httptest.NewRecorder(), r, "readings", &readingsData{Details: details, Errors: map[string]string{}, Shown: shown}); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
