package web

import (
	"context"
	"net/http/httptest"
	"strings"
	"testing"

	"kluis/meter"
	"kluis/openapi/client"
)

// TestFormerCustomersLog: from who lived there before, one goes to the log of then;
// of who lives there now it is the tab.
func TestFormerCustomersLog(t *testing.T) {
	t.Parallel()
	p := newOffice(t).portal
	today := meter.DayOf(p.now(), p.profile.Location())
	moved := today - 100
	c := &client.Connection{Ean: ean, Commodity: "electricity", Identity: client.ConnectionIdentity{State: "NONE"},
		Occupancies: []client.DayPeriod{{From: *apiDay(today - 300), To: apiDay(moved)}, {From: *apiDay(moved)}}}
	v := &visit{Lang: "nl", Theme: "auto", Session: &session{Employee: Employee{Role: Agent}}, Case: &Case{ID: "x", EAN: must(meter.ParseEAN(ean))}}
	r := httptest.NewRequestWithContext(context.WithValue(t.Context(), visitKey{}, v), "GET", "/c/x", nil)
	w := httptest.NewRecorder()
	if err := p.page(w, r, "connection", connectionData{Connection: c, Timeline: timelineOf(c, nil, today, p.profile.Location())}); err != nil {
		t.Fatal(err)
	}
	body := w.Body.String()
	if strings.Count(body, "data-former") != 1 || !strings.Contains(body, `href="/c/x/log?occupancy=`+(today-300).String()+`"`) {
		t.Error("no way, or another, to the log of who lived there before")
	}
}
