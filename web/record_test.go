package web

import (
	"slices"
	"testing"
	"time"

	"kluis/authz"
	"kluis/cryptoserver/envelope"
	"kluis/internal/audit"
	"kluis/openapi/client"
)

// TestParseRecord: what a gateway records is read whole, to the byte.
func TestParseRecord(t *testing.T) {
	t.Parallel()
	l := newLogged(t)
	rec := readRecord(l, l.profile)
	raw := must(rec.Encode())
	e, of, err := parseRecord(raw, rec.Receipt, l.profile)
	if err != nil || of != l.ean {
		t.Fatal(of, err)
	}
	if e.InteractionId != l.interaction || !e.At.Equal(rec.At) || e.Operation != client.READINGS || e.Outcome != client.PARTLY || e.Opened != 9 ||
		e.Caller.Gln != rec.Supplier.String() || *e.Caller.Employee != rec.Employee || *e.Caller.Reason != rec.Reason || *e.Purpose != client.PurposeCUSTOMERSERVICE ||
		e.From.String() != "2026-10-01" || e.To.String() != "2026-10-11" || e.AsOf != nil || e.ConsentId != nil || e.Step != nil {
		t.Errorf("%+v", e)
	}
	if g := e.Granted; len(g) != 1 || g[0].Field != "import_low" || g[0].To.String() != "2026-10-10" || g[0].Granularity != client.P1D || g[0].Rule != "a-rule" {
		t.Errorf("%+v", g)
	}
	if h := e.Withheld; len(h) != 1 || h[0].From.String() != "2026-10-10" || h[0].Reason != client.PERIODINFUTURE {
		t.Errorf("%+v", h)
	}
	for n := range raw {
		if _, _, err := parseRecord(raw[:n], rec.Receipt, l.profile); err == nil {
			t.Fatalf("read without its last %d bytes", len(raw)-n)
		}
	}
	for n := range rec.Receipt {
		if _, err := openedOf(rec.Receipt[:n]); err == nil && n < 60 {
			t.Fatalf("a receipt of %d bytes", n)
		}
	}
	if _, _, err := parseRecord(append(slices.Clone(raw), 0), rec.Receipt, l.profile); err == nil {
		t.Error("read with a byte more")
	}
	if _, _, err := parseRecord(raw, nil, l.profile); err == nil {
		t.Error("read without its receipt")
	}

	step := audit.Record{InteractionID: rec.InteractionID, At: rec.At, Operation: audit.ConsentStep, Supplier: rec.Supplier, Employee: rec.Employee, Reason: rec.Reason,
		EAN: rec.EAN, Purpose: rec.Purpose, ConsentID: [16]byte{7}, Action: authz.ActionRevoke, Outcome: audit.Refused, LegalFile: [32]byte{1}, FileVersion: 3, Profile: rec.Profile}
	e, _, err = parseRecord(must(step.Encode()), nil, l.profile)
	if err != nil || e.Operation != client.CONSENTSTEP || *e.Step != "REVOKE" || e.Outcome != client.REFUSED || e.ConsentId[0] != 7 || e.From != nil {
		t.Errorf("%+v, %v", e, err)
	}
}

// TestSaid: whatever of a line is another than the record, the proof that was asked
// for with it is of something else.
func TestSaid(t *testing.T) {
	t.Parallel()
	l := newLogged(t)
	p := &Portal{profile: l.profile}
	rec := readRecord(l, l.profile)
	of := func(change func(*client.AccessLogEntry)) string {
		e, _, err := parseRecord(must(rec.Encode()), rec.Receipt, l.profile)
		if err != nil {
			t.Fatal(err)
		}
		change(e)
		return p.said(logLineOf(e, l.profile))
	}
	same := of(func(*client.AccessLogEntry) {})
	name, other := "Voorbeeld Energie", "curious"
	if same != of(func(e *client.AccessLogEntry) { e.Caller.Name, e.At = &name, e.At.In(time.Local) }) {
		t.Error("the name is not in the record")
	}
	purpose := client.PurposeMOVE
	for what, change := range map[string]func(*client.AccessLogEntry){
		"gln": func(e *client.AccessLogEntry) { e.Caller.Gln = "8712345600020" }, "a supplier": func(e *client.AccessLogEntry) { e.Caller.Employee, e.Caller.Reason = nil, nil },
		"employee": func(e *client.AccessLogEntry) { e.Caller.Employee = &other }, "reason": func(e *client.AccessLogEntry) { e.Caller.Reason = &other },
		"purpose": func(e *client.AccessLogEntry) { e.Purpose = &purpose }, "time": func(e *client.AccessLogEntry) { e.At = e.At.Add(time.Second) },
		"operation": func(e *client.AccessLogEntry) { e.Operation = client.CONSENTS }, "outcome": func(e *client.AccessLogEntry) { e.Outcome = client.GIVEN },
		"opened": func(e *client.AccessLogEntry) { e.Opened = 0 }, "days": func(e *client.AccessLogEntry) { e.To = e.From },
		"as of": func(e *client.AccessLogEntry) { e.AsOf = &e.At }, "given": func(e *client.AccessLogEntry) { e.Granted = nil },
		"basis":           func(e *client.AccessLogEntry) { e.Granted[0].LegalBasis = client.LegalBasisCONSENT },
		"reason withheld": func(e *client.AccessLogEntry) { e.Withheld[0].Reason = client.ERASED },
	} {
		if of(change) == same {
			t.Errorf("another %s is not seen", what)
		}
	}
}

// TestSaidOfANameAndAddress: whether they were decrypted is in the receipt; a log
// that keeps it back, or makes it up, says something else than the record.
func TestSaidOfANameAndAddress(t *testing.T) {
	t.Parallel()
	l := newLogged(t)
	p := &Portal{profile: l.profile}
	read := readRecord(l, l.profile)
	for _, operation := range []audit.Operation{audit.Connection, audit.Find} {
		opened := audit.Record{InteractionID: read.InteractionID, At: read.At, Operation: operation, Supplier: read.Supplier, Employee: read.Employee, Reason: read.Reason,
			EAN: read.EAN, Purpose: read.Purpose, Outcome: audit.Given, LegalFile: read.LegalFile, FileVersion: 3, Profile: read.Profile}
		opened.Receipt = envelope.Receipt{ServerID: "c1", Sequence: 1, At: read.At, InteractionID: read.InteractionID, Supplier: read.Supplier, EAN: read.EAN,
			Purpose: read.Purpose, FileVersion: 3, Opened: 1}.Encode()
		looked := opened
		looked.Receipt = nil
		for n, rec := range []audit.Record{looked, opened} {
			said := func(opened int) string {
				e, _, err := parseRecord(must(rec.Encode()), rec.Receipt, l.profile)
				if err != nil || e.Opened != n {
					t.Fatal(e, err)
				}
				e.Opened = opened
				return p.said(logLineOf(e, l.profile))
			}
			if said(n) == said(1-n) {
				t.Errorf("%s of which %d were decrypted: %d is not seen", operation, n, 1-n)
			}
		}
	}
}
