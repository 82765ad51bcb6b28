package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/lib/pq"

	"kluis/authz"
	"kluis/cryptoserver/envelope"
	"kluis/internal/audit"
	"kluis/internal/postgres"
	"kluis/internal/testing/hsmtest"
	"kluis/internal/testing/stafftest"
	"kluis/meter"
	"kluis/openapi"
	"kluis/openapi/client"
	"kluis/server"
)

// living seals and stores who lives at a metering point since a day.
func (w *world) living(e meter.EAN, since meter.Day, version uint32, who meter.Person) postgres.IdentityRow {
	w.t.Helper()
	heads, err := w.ingest.IdentityHeads(w.t.Context(), []postgres.IdentityAt{{EAN: e, Day: since}})
	if err != nil {
		w.t.Fatal(err)
	}
	var keys []envelope.KeyRecord
	if heads[0].Key == nil {
		if keys, err = w.pool.ingest.Mint(w.t.Context(), []envelope.KeySpec{{EAN: e, Class: meter.Identity, Month: since.Month(), Occupancy: since}}); err != nil {
			w.t.Fatal(err)
		}
		heads[0].Key = &keys[0]
	}
	out, err := w.pool.ingest.SealIdentities(w.t.Context(), []envelope.PlainIdentity{{Key: *heads[0].Key, Version: version, Person: who}})
	if err != nil {
		w.t.Fatal(err)
	}
	row := postgres.IdentityRow{EAN: e, Field: 9, Day: since, Version: version, KeyID: heads[0].Key.ID, ContentMAC: out[0].ContentMAC, Ciphertext: out[0].Ciphertext, BlindIndex: out[0].BlindIndex}
	if err := w.ingest.CommitIdentities(w.t.Context(), keys, []postgres.IdentityRow{row}); err != nil {
		w.t.Fatal(err)
	}
	return row
}

func at(name, postcode, number, addition string) meter.Person {
	return meter.Person{Name: name, Address: meter.Address{Street: "Dorpsstraat", HouseNumber: must(meter.ParseHouseNumber(number)),
		Addition: addition, Postcode: must(meter.ParsePostcode(postcode)), City: "Ons Dorp"}}
}

func errandToFind(postcode, number string) authz.Errand {
	return authz.Errand{Kind: authz.ErrandFind, Reason: "ticket-9", Postcode: must(meter.ParsePostcode(postcode)), HouseNumber: must(meter.ParseHouseNumber(number))}
}

// finds asks for what is at an address, as the portal.
func (w *world) finds(token, postcode, number string) (openapi.FoundPoints, reply) {
	w.t.Helper()
	if w.portal.client == nil {
		w.portal.client = w.http(w.portal.cert)
	}
	r := w.do(w.portal.client, http.MethodPost, "/v1/metering-points/find", w.posting(token, form{"postcode": postcode, "houseNumber": number}))
	var out openapi.FoundPoints
	if r.status == 200 {
		holdsTo(w.t, "FoundPoints", r.body, &out)
	}
	return out, r
}

func TestFind(t *testing.T) {
	t.Parallel()
	w := newWorld(t, options{})
	since, moved := day("2020-01-01"), day("2024-02-01")
	upstairs, downstairs, next := w.customer(1, w.a), w.customer(2, w.b), w.customer(3, w.a)
	gas := w.ean(4)
	w.legalFile(gas, meter.Gas, authz.SetOccupancy{Days: meter.DayRange{From: since, To: moved}}, authz.SetOccupancy{Days: meter.DayRange{From: moved, To: meter.MaxDay}})
	w.living(upstairs, since, 1, at("Xantippe Overdam", "1234AB", "17", "B"))
	w.living(downstairs, since, 1, at("Ysolde Onderdam", "1234AB", "17", "A"))
	w.living(next, since, 1, at("Zoë Buurman", "1234AB", "19", ""))
	w.living(gas, since, 1, at("Vroegere Bewoner", "1234AB", "17", "A")) // of whom nothing is told
	token := w.staffToken("kim", authz.Agent, errandToFind("1234AB", "17"))

	// Both at the number, by their additions; who lives there now at the gas
	// meter is not known.
	got, r := w.finds(token, "1234AB", "17")
	if r.status != 200 || got.More || len(got.Found) != 2 || got.Found[0].Ean != downstairs.String() || *got.Found[0].Address.Addition != "A" ||
		got.Found[1].Ean != upstairs.String() || *got.Found[1].Address.Addition != "B" || got.Found[0].Address.Street != "Dorpsstraat" ||
		got.Found[0].Address.Postcode != "1234AB" || got.Found[0].Address.HouseNumber != "17" || got.Found[0].Address.City != "Ons Dorp" || got.Found[0].Commodity != "electricity" {
		t.Fatalf("%d %s", r.status, r.body)
	}
	if c := r.header.Get("Cache-Control"); c != "no-store" {
		t.Errorf("Cache-Control %q", c)
	}
	for _, name := range []string{"Overdam", "Onderdam", "Bewoner"} {
		if strings.Contains(string(r.body), name) {
			t.Errorf("the name %s is told", name)
		}
	}
	// A record of each, which its customer sees, with what a cryptoserver says
	// that it opened.
	records := w.records()
	if len(records) != 2 {
		t.Fatalf("%d records", len(records))
	}
	for _, rec := range records {
		rc, err := rec.Opening()
		if err != nil || rec.Operation != audit.Find || rec.Outcome != audit.Given || rec.EAN != upstairs && rec.EAN != downstairs || rec.Employee != stafftest.Subject("kim") ||
			rec.Reason != "ticket-9" || rec.FileVersion == 0 || rc.Opened != 1 {
			t.Errorf("record %+v, %v", rec, err)
		}
	}

	// The customer at the gas meter becomes known, and one whose address was
	// corrected is not at the old one any more.
	w.living(gas, moved, 1, at("Nieuwe Bewoner", "1234AB", "17", "A"))
	w.living(upstairs, since, 2, at("Xantippe Overdam", "1234AB", "21", ""))
	got, _ = w.finds(token, "1234AB", "17")
	if len(got.Found) != 2 || got.Found[0].Ean != min(gas.String(), downstairs.String()) || got.Found[1].Ean != max(gas.String(), downstairs.String()) {
		t.Errorf("%+v", got)
	}
	if got, _ := w.finds(w.staffToken("kim", authz.Supervisor, errandToFind("1234AB", "21")), "1234AB", "21"); len(got.Found) != 1 || got.Found[0].Ean != upstairs.String() || got.Found[0].Address.Addition != nil {
		t.Errorf("at the corrected address: %+v", got)
	}
	before := len(w.records())
	if got, r := w.finds(w.staffToken("kim", authz.Agent, errandToFind("1234AB", "99")), "1234AB", "99"); r.status != 200 || len(got.Found) != 0 || got.More {
		t.Errorf("nobody there: %d %s", r.status, r.body)
	}
	if rec := w.records()[before:]; len(rec) != 1 || !rec[0].EAN.IsZero() || rec[0].Outcome != audit.NoRelation || rec[0].Operation != audit.Find || rec[0].Receipt != nil {
		t.Errorf("%+v", rec)
	}

	// Another address than the token's, other tokens, other callers.
	for name, tt := range map[string]struct {
		token, postcode, number string
		status                  int
		problem                 string
	}{
		"another house number": {token, "1234AB", "19", 403, "not-permitted"},
		"another postcode":     {token, "1234AC", "17", 403, "not-permitted"},
		"to look":              {w.staffToken("kim", authz.Agent, authz.Errand{Kind: authz.ErrandView, EAN: upstairs}), "1234AB", "17", 403, "not-permitted"},
		"an auditor":           {w.staffToken("kim", authz.Auditor, authz.Errand{Kind: authz.ErrandOversee}), "1234AB", "17", 403, "not-permitted"},
		"no postcode":          {token, "1234 AB", "17", 400, "invalid-parameters"},
		"of another market":    {token, "1000", "17", 400, "invalid-parameters"},
		"no house number":      {token, "1234AB", "17A", 400, "invalid-parameters"},
	} {
		if _, r := w.finds(tt.token, tt.postcode, tt.number); r.status != tt.status || r.problem(t) != tt.problem || strings.Contains(string(r.body), "Dorps") || strings.Contains(string(r.body), tt.postcode) {
			t.Errorf("%s: %d %s", name, r.status, r.body)
		}
	}
	w.a.client = w.http(w.a.cert)
	if r := w.do(w.a.client, http.MethodPost, "/v1/metering-points/find", w.posting(w.token(w.a), form{"postcode": "1234AB", "houseNumber": "17"})); r.status != 403 || r.problem(t) != "not-permitted" {
		t.Errorf("a supplier: %d %s", r.status, r.body)
	}
	if r := w.do(w.a.client, http.MethodPost, "/v1/metering-points/find", w.posting(token, form{"postcode": "1234AB", "houseNumber": "17"})); r.status != 401 {
		t.Errorf("a token with another certificate: %d %s", r.status, r.body)
	}

	// What a writer of the database can do: nothing is found that is not there, and
	// what is moved is not told.
	if _, err := w.owner().Exec(`INSERT INTO identity_index (ean, day, blind_index) SELECT $1, day, blind_index FROM identity_index WHERE ean = $2`, next.Int64(), downstairs.Int64()); err != nil {
		t.Fatal(err)
	}
	found := func() []string {
		got, r := w.finds(token, "1234AB", "17")
		if r.status != 200 {
			t.Fatalf("%d %s", r.status, r.body)
		}
		var eans []string
		for _, f := range got.Found {
			eans = append(eans, f.Ean)
		}
		slices.Sort(eans)
		return eans
	}
	honest := []string{downstairs.String(), gas.String()}
	slices.Sort(honest)
	if got := found(); !slices.Equal(got, honest) {
		t.Errorf("with a forged index: %v", got)
	}
	for name, statement := range map[string]string{
		"a neighbour's row":  `INSERT INTO sealed_identity SELECT $1, field, day, 2, key_id, content_mac, ciphertext FROM sealed_identity WHERE ean = $2`,
		"and its key":        `INSERT INTO data_key SELECT $1, key_id, class, month, 1, kek_epoch, wrapped, mac FROM data_key WHERE ean = $2`,
		"an older version":   `UPDATE sealed_identity SET version = 7 WHERE ean = $1 AND version = 1 AND $2::bigint > 0`,
		"of the one before":  `UPDATE sealed_identity SET day = '2024-02-01', version = 9 WHERE ean = $3 AND day = '2020-01-01' AND $1::bigint + $2::bigint > 0`,
		"a flipped bit":      `UPDATE sealed_identity SET ciphertext = set_byte(ciphertext, 70, get_byte(ciphertext, 70) # 1) WHERE ean = $2 AND $1::bigint > 0`,
		"another key record": `UPDATE data_key SET wrapped = set_byte(wrapped, 3, get_byte(wrapped, 3) # 1) WHERE ean = $2 AND class = 3 AND $1::bigint > 0`,
	} {
		if strings.Contains(statement, "$3") {
			_, err := w.owner().Exec(statement, upstairs.Int64(), downstairs.Int64(), gas.Int64())
			if err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			continue
		}
		if _, err := w.owner().Exec(statement, next.Int64(), downstairs.Int64()); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
	}
	if got := found(); len(got) != 0 {
		t.Errorf("after the rows were moved and changed: %v", got)
	}
	for _, rec := range w.records() {
		if rec.Operation == audit.Find && rec.EAN == next {
			t.Error("the neighbour was told of")
		}
	}

	for _, s := range []string{"Overdam", "Buurman", "1234AB", "Dorpsstraat", upstairs.String()} {
		if strings.Contains(w.log.String(), s) {
			t.Errorf("%q is in the log", s)
		}
	}
}

// No record, no address; and more than are told at once.
func TestFindIsRecordedAndBounded(t *testing.T) {
	t.Parallel()
	w := newWorld(t, options{})
	e := w.customer(1, w.a)
	row := w.living(e, day("2020-01-01"), 1, at("Xantippe Overdam", "1234AB", "17", ""))
	token := w.staffToken("kim", authz.Agent, errandToFind("1234AB", "17"))
	errFault := errors.New("injected fault")
	w.batches.records = func([]audit.Record, func() error) error { return errFault }
	if _, r := w.finds(token, "1234AB", "17"); r.problem(t) != "record-not-written" || strings.Contains(string(r.body), "Dorps") || len(w.records()) != 0 {
		t.Errorf("%d %s", r.status, r.body)
	}
	w.batches.reset()
	w.tap.record = func(context.Context, audit.Record, server.Recorder) error { return errFault }
	if _, r := w.finds(w.staffToken("kim", authz.Agent, errandToFind("1234AB", "18")), "1234AB", "18"); r.problem(t) != "record-not-written" {
		t.Errorf("nothing found: %d %s", r.status, r.body)
	}
	w.tap.record = nil

	// More than are looked at that the index has there, before the one that is.
	var eans []int64
	for n := range 300 {
		eans = append(eans, must(meter.ParseEAN(withCheckDigit(fmt.Sprintf("10000000%09d", n)))).Int64())
	}
	if _, err := w.owner().Exec(`INSERT INTO identity_index (ean, day, blind_index) SELECT ean, '2020-01-01', $2 FROM unnest($1::bigint[]) ean`, pq.Array(eans), row.BlindIndex[:]); err != nil {
		t.Fatal(err)
	}
	if got, r := w.finds(token, "1234AB", "17"); r.status != 200 || !got.More || len(got.Found) != 0 {
		t.Errorf("%d %s", r.status, r.body)
	}
}

// Without cryptoservers nothing is found, and that is said. Who does not ask for a
// name and address has none decrypted, and does not need them.
func TestFindWithoutCryptoservers(t *testing.T) {
	t.Parallel()
	p, err := startPool(t, hsmtest.New(t))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := p.close(); err != nil {
			t.Error(err)
		}
	})
	w := newWorld(t, options{pool: p})
	e := w.customer(1, w.a)
	w.living(e, day("2020-01-01"), 1, at("Xantippe Overdam", "1234AB", "17", ""))
	token := w.staffToken("kim", authz.Agent, errandToFind("1234AB", "17"))
	w.portal.client = w.http(w.portal.cert)
	view := w.staffToken("kim", authz.Agent, authz.Errand{Kind: authz.ErrandView, EAN: e})
	connection := func(query string) (openapi.Connection, reply) {
		t.Helper()
		r := w.do(w.portal.client, http.MethodGet, connectionPath(e)+query, bearer(view))
		var c openapi.Connection
		holdsTo(t, "Connection", r.body, &c)
		return c, r
	}
	unnamed := func() {
		t.Helper()
		before := len(w.records())
		if c, r := connection("?identity=false"); r.status != 200 || c.Identity != (openapi.ConnectionIdentity{State: openapi.IdentityNotAsked}) || len(c.Supply) != 1 {
			t.Errorf("without the name: %d %s", r.status, r.body)
		}
		if rec := w.records()[before:]; len(rec) != 1 || rec[0].Operation != audit.Connection || rec[0].Outcome != audit.Given || rec[0].EAN != e || rec[0].Receipt != nil || rec[0].Purpose != 0 {
			t.Errorf("%+v", rec)
		}
	}
	receipts := func() (n uint64) { // that the cryptoservers wrote into their journals
		t.Helper()
		for _, s := range p.issuer.Status(t.Context()) {
			if s.Err != nil {
				t.Fatal(s.Err)
			}
			n += s.Receipts
		}
		return n
	}
	if c, _ := connection(""); receipts() != 1 || c.Identity.State != openapi.IdentityGiven {
		t.Errorf("%d receipts, %+v", receipts(), c.Identity)
	}
	unnamed()
	if n := receipts(); n != 1 {
		t.Errorf("%d receipts, one name was asked for", n)
	}
	if c, _ := connection("?identity=true"); receipts() != 2 || c.Identity.State != openapi.IdentityGiven {
		t.Errorf("%d receipts, %+v", receipts(), c.Identity)
	}
	if err := p.stops[0](); err != nil {
		t.Fatal(err)
	}
	if got, r := w.finds(token, "1234AB", "17"); r.status != 200 || len(got.Found) != 1 {
		t.Errorf("with one of two: %d %s", r.status, r.body)
	}
	if err := p.stops[1](); err != nil {
		t.Fatal(err)
	}
	if c, r := connection(""); r.status != 200 || c.Identity.State != openapi.IdentityUnavailable || c.Identity.Name != nil || len(c.Supply) != 1 {
		t.Errorf("the rest stands: %d %s", r.status, r.body)
	}
	unnamed()
	before := len(w.records())
	if _, r := w.finds(token, "1234AB", "17"); r.status != 503 || r.problem(t) != "decryption-unavailable" || r.header.Get("Retry-After") == "" {
		t.Errorf("with none: %d %s", r.status, r.body)
	}
	if rec := w.records()[before:]; len(rec) != 1 || rec[0].Outcome != audit.Failed || !rec[0].EAN.IsZero() {
		t.Errorf("%+v", rec)
	}
}

// Who lives there, as the connection shows it: to whom, and what becomes of it
// when it cannot be shown. The rest of the answer stands.
func TestConnectionIdentity(t *testing.T) {
	t.Parallel()
	w := newWorld(t, options{})
	since := day("2020-01-01")
	e, empty, unknown := w.customer(1, w.a), w.ean(2), w.customer(3, w.b)
	w.legalFile(empty, meter.Electricity, authz.SetOccupancy{Days: meter.DayRange{From: since, To: since + 30}})
	w.living(e, since, 1, at("Xantippe <b>Overdam</b>", "1234AB", "17", "B"))
	w.living(empty, since, 1, at("Vroegere Bewoner", "1234AB", "19", ""))
	w.portal.client = w.http(w.portal.cert)
	look := func(role authz.Role, of meter.EAN) (openapi.Connection, reply) {
		t.Helper()
		token := w.staffToken("kim", role, authz.Errand{Kind: authz.ErrandView, EAN: of, Reason: "ticket-9"})
		r := w.do(w.portal.client, http.MethodGet, "/v1/metering-points/"+of.String()+"/connection", bearer(token))
		var out openapi.Connection
		if r.status != 200 {
			t.Fatalf("%d %s", r.status, r.body)
		}
		holdsTo(t, "Connection", r.body, &out)
		return out, r
	}
	opened := func() bool {
		t.Helper()
		all := w.records()
		rec := all[len(all)-1]
		if rec.Operation != audit.Connection || rec.Outcome != audit.Given {
			t.Errorf("record %+v", rec)
		}
		if len(rec.Receipt) == 0 {
			return false
		}
		rc, err := rec.Opening()
		return err == nil && rc.Opened == 1
	}

	for _, role := range []authz.Role{authz.Agent, authz.Supervisor} {
		c, r := look(role, e)
		if c.Identity.State != openapi.IdentityGiven || *c.Identity.Name != "Xantippe <b>Overdam</b>" || c.Identity.Address.City != "Ons Dorp" || *c.Identity.Address.Addition != "B" ||
			c.Identity.Since.String() != "2020-01-01" || !opened() {
			t.Errorf("%s: %s", role, r.body)
		}
	}
	for name, tt := range map[string]struct {
		role authz.Role
		of   meter.EAN
		want openapi.ConnectionIdentityState
	}{
		"an auditor":       {authz.Auditor, e, openapi.IdentityNotForRole},
		"nobody there":     {authz.Agent, empty, openapi.IdentityNone},
		"nothing is known": {authz.Agent, unknown, openapi.IdentityNone},
	} {
		if c, r := look(tt.role, tt.of); c.Identity.State != tt.want || c.Identity.Name != nil || c.Identity.Address != nil || c.Identity.Since != nil || opened() ||
			strings.Contains(string(r.body), "Bewoner") || strings.Contains(string(r.body), "Dorps") {
			t.Errorf("%s: %s", name, r.body)
		}
	}
	// A former customer's row under today's day, another's, and one that is cut off.
	if _, err := w.owner().Exec(`INSERT INTO sealed_identity SELECT $1, field, day, 1, key_id, content_mac, ciphertext FROM sealed_identity WHERE ean = $2`, unknown.Int64(), e.Int64()); err != nil {
		t.Fatal(err)
	}
	if c, r := look(authz.Agent, unknown); c.Identity.State != openapi.IdentityDamaged || opened() {
		t.Errorf("another's row: %s", r.body)
	}
	if _, err := w.owner().Exec(`UPDATE sealed_identity SET ciphertext = substring(ciphertext FROM 1 FOR 300) WHERE ean = $1`, e.Int64()); err != nil {
		t.Fatal(err)
	}
	if c, r := look(authz.Agent, e); c.Identity.State != openapi.IdentityDamaged || opened() || len(c.Supply) == 0 {
		t.Errorf("cut off: %s", r.body)
	}
	// Where it is not asked for, it is not fetched either, whoever asks: the
	// gateway could not. In the customer's log it is somebody who looked.
	if _, err := w.owner().Exec(`REVOKE SELECT ON sealed_identity FROM kluis_gateway`); err != nil {
		t.Fatal(err)
	}
	if c, _ := look(authz.Agent, e); c.Identity.State != openapi.IdentityUnavailable {
		t.Errorf("not to be fetched: %+v", c.Identity)
	}
	for _, role := range []authz.Role{authz.Agent, authz.Supervisor, authz.Auditor} {
		token := w.staffToken("kim", role, authz.Errand{Kind: authz.ErrandView, EAN: e, Reason: "ticket-10"})
		r := w.asStaff(token, connectionPath(e)+"?identity=false")
		var c openapi.Connection
		if holdsTo(t, "Connection", r.body, &c); r.status != 200 || c.Identity != (openapi.ConnectionIdentity{State: openapi.IdentityNotAsked}) || len(c.Supply) == 0 || opened() {
			t.Errorf("%s: %d %s", role, r.status, r.body)
		}
	}
	log := w.logOf(w.asStaff(w.view(e, authz.Agent), logPath(e)))
	var asked, unasked int
	for _, x := range log.Entries {
		switch {
		case x.Operation != client.CONNECTION:
		case *x.Caller.Reason == "ticket-10" && x.Opened == 0 && x.Purpose == nil:
			unasked++
		case *x.Caller.Reason == "ticket-9" && x.Opened == 1 && *x.Purpose == client.PurposeCUSTOMERSERVICE:
			asked++
		}
	}
	if asked != 2 || unasked != 3 {
		t.Errorf("%d with the name, %d without: %+v", asked, unasked, log.Entries)
	}
	// There are no other words for yes and no than the two, and nothing is done.
	before := len(w.records())
	for _, q := range []string{"=", "=1", "=0", "=t", "=F", "=TRUE", "=False", "=no", "=null", "=%20false", "=false%00", "=false,true", "", "=false&identity=true", "=false&identity=false", "[]=false"} {
		r := w.asStaff(w.view(e, authz.Agent), connectionPath(e)+"?identity"+q)
		if r.status != 400 || r.problem(t) != "invalid-parameters" || !strings.Contains(string(r.body), `"/query`) {
			t.Errorf("identity%s: %d %s", q, r.status, r.body)
		}
	}
	if n := len(w.records()); n != before {
		t.Errorf("%d records of requests that are none", n-before)
	}
	for _, s := range []string{"Overdam", "1234AB", "Dorpsstraat", e.String()} {
		if strings.Contains(w.log.String(), s) {
			t.Errorf("%q is in the log", s)
		}
	}
}
