package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"golang.org/x/mod/sumdb/tlog"

	"kluis/auditlog"
	"kluis/auditlog/leaf"
	"kluis/auditlog/oversight"
	"kluis/authz"
	"kluis/cryptoserver/checkpoint"
	cryptoclient "kluis/cryptoserver/client"
	"kluis/internal/audit"
	"kluis/internal/postgres"
	"kluis/internal/testing/stafftest"
	"kluis/meter"
	"kluis/openapi"
	"kluis/openapi/client"
)

func connectionPath(e meter.EAN) string { return "/v1/metering-points/" + e.String() + "/connection" }

// postAsStaff sends a body as the portal.
func (w *world) postAsStaff(token, path string, body any) reply {
	w.t.Helper()
	if w.portal.client == nil {
		w.portal.client = w.http(w.portal.cert)
	}
	return w.do(w.portal.client, http.MethodPost, path, w.posting(token, body))
}

func TestConnection(t *testing.T) {
	t.Parallel()
	w := newWorld(t, options{})
	since, moved := day("2020-01-01"), day("2024-02-01")
	e := w.ean(1)
	w.legalFile(e, meter.Electricity, authz.SetOccupancy{Days: meter.DayRange{From: since, To: moved}}, authz.SetOccupancy{Days: meter.DayRange{From: moved, To: meter.MaxDay}},
		authz.SetSupply{Supplier: w.b.gln, Days: meter.DayRange{From: since, To: moved}}, authz.SetSupply{Supplier: w.a.gln, Days: meter.DayRange{From: moved, To: meter.MaxDay}},
		authz.SetOptOut{Days: meter.DayRange{From: day("2021-01-01"), To: day("2021-02-01")}})
	w.fill(e)
	w.living(e, since, 1, at("Vroegere Bewoner", "1234AB", "17", "A"))
	w.register(w.b, func(f *authz.SupplierFacts) { f.Suspended = true })

	connection := func(token string) (openapi.Connection, reply) {
		r := w.asStaff(token, connectionPath(e))
		var out openapi.Connection
		if r.status == 200 {
			holdsTo(t, "Connection", r.body, &out)
		}
		return out, r
	}
	// Of who lives there now nothing is kept.
	got, r := connection(w.view(e, authz.Agent))
	if r.status != 200 || got.Identity.State != openapi.IdentityNone || strings.Contains(string(r.body), "Bewoner") {
		t.Fatalf("%d %s", r.status, r.body)
	}
	if rec := w.lastRecord(); rec.Operation != audit.Connection || rec.Outcome != audit.Given || rec.EAN != e || rec.Employee != stafftest.Subject("agent-17") || rec.FileVersion != 6 || rec.Receipt != nil || rec.Purpose != 0 {
		t.Errorf("record %+v", rec)
	}
	w.living(e, moved, 1, at("Nieuwe Bewoner", "1234AB", "17", "A"))
	for _, role := range []authz.Role{authz.Agent, authz.Supervisor, authz.Auditor} {
		got, r := connection(w.view(e, role))
		if r.status != 200 || got.Ean != e.String() || got.Commodity != openapi.CommodityElectricity || got.TimeZone != "Europe/Amsterdam" || got.LegalFileVersion != 6 ||
			time.Since(got.LegalFileSealedAt) > 10*time.Minute || r.header.Get("Cache-Control") != "no-store" {
			t.Fatalf("%s: %d %s", role, r.status, r.body)
		}
		if len(got.Occupancies) != 2 || got.Occupancies[0].From.String() != "2020-01-01" || got.Occupancies[0].To.String() != "2024-02-01" || got.Occupancies[1].To != nil ||
			len(got.OptOuts) != 1 || got.OptOuts[0].To.String() != "2021-02-01" || len(got.Supply) != 2 || got.Supply[0].Supplier != w.b.gln.String() || got.Supply[1].To != nil {
			t.Errorf("%s: %+v", role, got)
		}
		if len(got.Suppliers) != 2 || !slices.IsSortedFunc(got.Suppliers, func(a, b openapi.SupplierName) int { return strings.Compare(a.Gln, b.Gln) }) {
			t.Errorf("%s: %+v", role, got.Suppliers)
		}
		for _, s := range got.Suppliers {
			if s.Name == nil || *s.Name != "Supplier" || s.Suspended != (s.Gln == w.b.gln.String()) {
				t.Errorf("%s: %+v", role, s)
			}
		}
		low := slices.IndexFunc(got.Fields, func(f openapi.ConnectionField) bool { return f.Field == "import_low" })
		if low < 0 || got.Fields[low].Obis != "1-0:1.8.1" || got.Fields[low].Unit != "kWh" || got.Fields[low].Class != "registers" || got.Fields[low].From.String() != w.days().From.String() {
			t.Errorf("%s: %+v", role, got.Fields)
		}
		rec := w.lastRecord()
		if role == authz.Auditor {
			if got.Identity.State != openapi.IdentityNotForRole || got.Identity.Name != nil || got.Identity.Address != nil || strings.Contains(string(r.body), "Dorpsstraat") || rec.Receipt != nil {
				t.Errorf("an auditor is told %+v", got.Identity)
			}
			continue
		}
		rc, err := rec.Opening()
		if got.Identity.State != openapi.IdentityGiven || *got.Identity.Name != "Nieuwe Bewoner" || got.Identity.Address.HouseNumber != "17" || got.Identity.Since.String() != "2024-02-01" ||
			err != nil || rc.Opened != 1 || rec.Purpose != meter.CustomerService {
			t.Errorf("%s: %+v, record %+v, %v", role, got.Identity, rec, err)
		}
	}
	// The customer sees it, and the one who has moved does not.
	log := w.logOf(w.asStaff(w.view(e, authz.Agent), logPath(e)))
	if n := len(slices.DeleteFunc(log.Entries, func(x client.AccessLogEntry) bool { return x.Operation != "CONNECTION" })); n != 4 {
		t.Errorf("%d entries", n)
	}
	if log := w.logOf(w.asStaff(w.view(e, authz.Agent), logPath(e, "occupancy", "2020-01-01"))); len(slices.DeleteFunc(log.Entries, func(x client.AccessLogEntry) bool { return x.Operation != "CONNECTION" })) != 0 {
		t.Error("shown to who has moved")
	}

	// Not there, elsewhere, not verified.
	unknown := w.ean(9)
	if r := w.asStaff(w.view(unknown, authz.Agent), connectionPath(unknown)); r.status != 404 || r.problem(t) != "metering-point-not-found" || w.lastRecord().Outcome != audit.NoRelation {
		t.Errorf("unknown: %d %s", r.status, r.body)
	}
	if r := w.asStaff(w.view(unknown, authz.Agent), connectionPath(e)); r.status != 403 || r.problem(t) != "not-permitted" {
		t.Errorf("another errand: %d %s", r.status, r.body)
	}
	if r := w.asStaff(w.view(e, authz.Agent), "/v1/metering-points/123/connection"); r.status != 400 {
		t.Errorf("no EAN: %d %s", r.status, r.body)
	}
	// A name that does not open keeps nothing else back.
	w.sql(`UPDATE sealed_identity SET ciphertext = overlay(ciphertext PLACING '\x00000000' FROM 20) WHERE ean = $1`, e.Int64())
	if got, r := connection(w.view(e, authz.Agent)); r.status != 200 || got.Identity.State != openapi.IdentityDamaged || len(got.Fields) == 0 || got.Identity.Name != nil {
		t.Errorf("damaged: %d %s", r.status, r.body)
	}
}

func TestPreview(t *testing.T) {
	t.Parallel()
	w := newWorld(t, options{})
	e := w.customer(1, w.a)
	asked, _ := w.request(w.a, e, nil)
	preview := func(token string, body form) (openapi.ConsentPreview, reply) {
		r := w.postAsStaff(token, "/v1/consents/preview", body)
		var out openapi.ConsentPreview
		if r.status == 200 {
			holdsTo(t, "ConsentPreview", r.body, &out)
		}
		return out, r
	}
	of := func(step string) form { return form{"ean": e.String(), "step": step, "consentId": asked.Id.String()} }
	intervals := func(list []openapi.AccessGranted) int {
		return len(slices.DeleteFunc(slices.Clone(list), func(g openapi.AccessGranted) bool { return g.LegalBasis != openapi.LegalBasisCONSENT }))
	}
	agent := w.view(e, authz.Agent)
	versions := func() (n int) {
		if err := w.owner().QueryRow(`SELECT count(*) FROM legal_file`).Scan(&n); err != nil {
			t.Fatal(err)
		}
		return n
	}
	before := versions()
	w.tap.taken()
	got, r := preview(agent, of("grant"))
	if calls := w.tap.taken(); calls != "supplier legal-file record" {
		t.Errorf("calls %q", calls)
	}
	if r.status != 200 || !got.Allowed || got.Why != nil || got.Supplier != w.a.gln.String() || intervals(got.Before) != 0 || intervals(got.After) == 0 || len(got.After) <= len(got.Before) {
		t.Fatalf("%d %s", r.status, r.body)
	}
	if rec := w.lastRecord(); rec.Operation != audit.DryRun || rec.Outcome != audit.Given || rec.EAN != e || len(rec.Granted) != len(got.Before) || rec.Receipt != nil || rec.FileVersion == 0 {
		t.Errorf("record %+v", rec)
	}
	if got, r := preview(w.view(e, authz.Supervisor), of("reject")); r.status != 200 || !got.Allowed || intervals(got.After) != 0 || len(got.After) != len(got.Before) {
		t.Errorf("%d %s", r.status, r.body)
	}
	// What it said is what comes.
	tag := w.asStaff(agent, "/v1/consents/"+asked.Id.String()).header.Get("ETag")
	if r := w.answer(asked, tag, authz.ActionGrant); r.status != 200 {
		t.Fatalf("%d %s", r.status, r.body)
	}
	now, _ := preview(agent, of("revoke"))
	if !now.Allowed || intervals(now.Before) != intervals(got.After) || intervals(now.After) != 0 {
		t.Errorf("before revoking: %+v", now)
	}
	if again, r := preview(agent, of("grant")); r.status != 200 || again.Allowed || again.Why == nil || *again.Why != "consent-answered" || again.Detail == nil || intervals(again.After) != intervals(again.Before) {
		t.Errorf("answered before: %d %s", r.status, r.body)
	}
	// A consent that is not there yet.
	terms := w.form(e, form{"supplier": w.a.gln.String(), "evidence": "call-77"})
	if got, r := preview(agent, form{"ean": e.String(), "step": "register", "newConsent": terms}); r.status != 200 || !got.Allowed || got.Supplier != w.a.gln.String() {
		t.Errorf("register: %d %s", r.status, r.body)
	}
	stranger := w.form(e, form{"supplier": w.b.gln.String(), "evidence": "call-77"})
	if got, r := preview(agent, form{"ean": e.String(), "step": "register", "newConsent": stranger}); r.status != 200 || len(got.Before) != 0 {
		t.Errorf("to a stranger: %d %s", r.status, r.body)
	}
	if n := versions(); n != before+1 {
		t.Errorf("%d versions more", n-before)
	}

	other := w.customer(2, w.a)
	for name, c := range map[string]struct {
		token   string
		body    form
		status  int
		problem string
	}{
		"an unknown consent": {agent, form{"ean": e.String(), "step": "revoke", "consentId": uuid.NewString()}, 404, "consent-not-found"},
		"another's errand":   {w.view(other, authz.Agent), of("revoke"), 403, "not-permitted"},
		"an auditor":         {w.view(e, authz.Auditor), of("revoke"), 403, "not-permitted"},
		"an unknown place":   {w.view(w.ean(9), authz.Agent), form{"ean": w.ean(9).String(), "step": "revoke", "consentId": uuid.NewString()}, 404, "metering-point-not-found"},
		"no consent":         {agent, form{"ean": e.String(), "step": "revoke"}, 400, "invalid-parameters"},
		"a supplier's step":  {agent, form{"ean": e.String(), "step": "request", "newConsent": terms}, 400, "invalid-parameters"},
		"of one that is":     {agent, form{"ean": e.String(), "step": "register", "newConsent": terms, "consentId": uuid.NewString()}, 400, "invalid-parameters"},
		"of none":            {agent, form{"ean": e.String(), "step": "register"}, 400, "invalid-parameters"},
		"of one elsewhere":   {agent, form{"ean": e.String(), "step": "register", "newConsent": w.form(other, form{"supplier": w.a.gln.String()})}, 400, "invalid-parameters"},
		"of two kinds":       {agent, form{"ean": e.String(), "step": "revoke", "consentId": uuid.NewString(), "newConsent": terms}, 400, "invalid-parameters"},
		"a bad consent":      {agent, form{"ean": e.String(), "step": "register", "newConsent": form{"ean": e.String()}}, 400, "invalid-parameters"},
		"no consent at all":  {agent, form{"ean": e.String(), "step": "register", "newConsent": "x"}, 400, "invalid-parameters"},
		"something more":     {agent, form{"ean": e.String(), "step": "revoke", "consentId": uuid.NewString(), "force": "x"}, 400, "invalid-parameters"},
		"an id of zeros":     {agent, form{"ean": e.String(), "step": "revoke", "consentId": uuid.Nil.String()}, 400, "invalid-parameters"},
	} {
		if _, r := preview(c.token, c.body); r.status != c.status || r.problem(t) != c.problem {
			t.Errorf("%s: %d %s", name, r.status, r.body)
		}
	}
}

// signer signs heads of the audit log, and has no journals.
type signer struct{ *cryptoclient.Client }

func (signer) Addresses() []string { return nil }

func (signer) ReadJournal(context.Context, string, [16]byte, uint64) ([]auditlog.Boot, [][]byte, error) {
	return nil, nil, errors.New("no journals here")
}

// logged runs the auditor's daemon until a proof of an entry is there.
func (w *world) logged(ready func() bool) {
	w.t.Helper()
	c, err := cryptoclient.New(cryptoclient.Config{Addresses: w.pool.addresses, TLS: serviceTLS("auditor")})
	if err != nil {
		w.t.Fatal(err)
	}
	defer c.Close()
	store, err := postgres.NewAuditor(w.t.Context(), postgres.Config{DSN: w.db.URL("kluis_auditor")})
	if err != nil {
		w.t.Fatal(err)
	}
	defer store.Close()
	log := auditlog.Log{Origin: "test.example/kluis", Keys: w.pool.hsm.SealKeys}
	export, err := auditlog.OpenExport(w.t.TempDir(), log)
	if err != nil {
		w.t.Fatal(err)
	}
	a, err := auditlog.New(store, signer{c}, export, log, slog.New(slog.DiscardHandler), oversight.Rules{Zone: w.profile.Location(), Working: oversight.DefaultHours()},
		auditlog.Timing{Look: 20 * time.Millisecond, Sign: 20 * time.Millisecond})
	if err != nil {
		w.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(w.t.Context())
	done := make(chan error, 1)
	go func() { done <- a.Run(ctx) }()
	w.eventually("the entry is in the audit log", ready)
	cancel()
	if err := <-done; err != nil {
		w.t.Error(err)
	}
}

func proofPath(e meter.EAN, id string, query ...string) string {
	path, sep := "/v1/metering-points/"+e.String()+"/access-log/"+id+"/proof", "?"
	for i := 0; i+1 < len(query); i += 2 {
		path, sep = path+sep+query[i]+"="+query[i+1], "&"
	}
	return path
}

func TestAccessProof(t *testing.T) {
	t.Parallel()
	w := newWorld(t, options{})
	e, other := w.ean(1), w.customer(2, w.a)
	middle := w.days().From + 10 // one moves out, another in
	w.legalFile(e, meter.Electricity, authz.SetOccupancy{Days: meter.DayRange{From: day("2020-01-01"), To: middle}}, authz.SetOccupancy{Days: meter.DayRange{From: middle, To: meter.MaxDay}},
		authz.SetSupply{Supplier: w.a.gln, Days: meter.DayRange{From: day("2020-01-01"), To: meter.MaxDay}})
	w.fill(e)
	read := func(from, to meter.Day) string {
		return w.answerOf(w.get(w.a, w.path(e, "purpose", "ENERGY_MANAGEMENT", "class", "registers", "from", from.String(), "to", to.String()))).InteractionId.String()
	}
	own, both, theirs := read(middle+1, middle+5), read(middle-3, middle+3), read(middle-5, middle-2)
	elsewhere := w.answerOf(w.get(w.a, w.path(other))).InteractionId.String()
	token := w.view(e, authz.Agent)

	// Not logged yet.
	if r := w.asStaff(token, proofPath(e, own)); r.status != 404 || r.problem(t) != "proof-not-found" {
		t.Fatalf("%d %s", r.status, r.body)
	}
	if rec := w.lastRecord(); rec.Operation != audit.AccessLog || rec.Outcome != audit.Refused || !rec.Days.Empty() {
		t.Errorf("record %+v", rec)
	}
	proof := func(token, id string, query ...string) (openapi.AccessProof, reply) {
		r := w.asStaff(token, proofPath(e, id, query...))
		var out openapi.AccessProof
		if r.status == 200 {
			holdsTo(t, "AccessProof", r.body, &out)
		}
		return out, r
	}
	w.logged(func() bool {
		_, r := proof(token, own)
		_, both := proof(token, both)
		return r.status == 200 && both.status == 200
	})

	// checks says whether a proof holds for who has the public keys alone.
	checks := func(p openapi.AccessProof) error {
		head, err := checkpoint.Open(p.Checkpoint, "test.example/kluis", w.pool.hsm.SealKeys...)
		if err != nil {
			return err
		}
		if int(head.Size) != p.Size || !head.At.Equal(p.SignedAt) {
			return errors.New("another head")
		}
		b, err := hex.DecodeString(p.Leaf)
		if err != nil || len(b) != 32 {
			return errors.New("no leaf")
		}
		var hashes []tlog.Hash
		for _, h := range p.Hashes {
			if len(h) != 32 {
				return errors.New("no hash")
			}
			hashes = append(hashes, tlog.Hash(h))
		}
		if err := tlog.CheckRecord(hashes, int64(p.Size), tlog.Hash(head.Root), int64(p.Index), tlog.Hash(b)); err != nil {
			return err
		}
		if !p.Whole {
			return nil
		}
		row := leaf.Row{Key: leaf.Key{Kind: leaf.Access}, Salt: *p.Salt, Content: *p.Record}
		if p.Receipt != nil {
			row.Receipt = *p.Receipt
		}
		if row.Hash() != tlog.Hash(b) {
			return errors.New("the record is not of the leaf")
		}
		return nil
	}
	for _, role := range []authz.Role{authz.Agent, authz.Supervisor, authz.Auditor} {
		p, r := proof(w.view(e, role), own)
		if r.status != 200 || !p.Whole || p.Origin != "test.example/kluis" || p.Salt == nil || p.Receipt == nil {
			t.Fatalf("%s: %d %s", role, r.status, r.body)
		}
		if err := checks(p); err != nil {
			t.Error(err)
		}
		rec, err := audit.Parse(*p.Record, *p.Receipt)
		if err != nil || uuid.UUID(rec.InteractionID).String() != own || rec.Supplier != w.a.gln {
			t.Errorf("%+v, %v", rec, err)
		}
		if rec := w.lastRecord(); rec.Operation != audit.AccessLog || rec.Outcome != audit.Given || rec.Days.From != middle {
			t.Errorf("record %+v", rec)
		}
	}
	// Altered, it fails, whatever it is.
	p, _ := proof(token, own)
	for name, change := range map[string]func(*openapi.AccessProof){
		"record":     func(p *openapi.AccessProof) { b := slices.Clone(*p.Record); b[40] ^= 1; p.Record = &b },
		"receipt":    func(p *openapi.AccessProof) { p.Receipt = nil },
		"salt":       func(p *openapi.AccessProof) { b := slices.Clone(*p.Salt); b[0] ^= 1; p.Salt = &b },
		"leaf":       func(p *openapi.AccessProof) { h := sha256.Sum256([]byte(p.Leaf)); p.Leaf = hex.EncodeToString(h[:]) },
		"index":      func(p *openapi.AccessProof) { p.Index ^= 1 },
		"hashes":     func(p *openapi.AccessProof) { p.Hashes = p.Hashes[1:] },
		"checkpoint": func(p *openapi.AccessProof) { p.Checkpoint = strings.Replace(p.Checkpoint, "\n", "x\n", 1) },
	} {
		q := p
		change(&q)
		if checks(q) == nil {
			t.Errorf("%s altered, and it holds", name)
		}
	}
	// Of days of two customers each is shown that it is there, and not what.
	for _, occupancy := range []string{middle.String(), "2020-01-01"} {
		p, r := proof(token, both, "occupancy", occupancy)
		if r.status != 200 || p.Whole || p.Record != nil || p.Salt != nil || p.Receipt != nil {
			t.Errorf("of both: %d %s", r.status, r.body)
		} else if err := checks(p); err != nil {
			t.Error(err)
		}
	}
	// What is not in this customer's log has no proof, not even a word.
	if p, r := proof(token, theirs, "occupancy", "2020-01-01"); r.status != 200 || !p.Whole || checks(p) != nil {
		t.Errorf("of who has moved: %d %s", r.status, r.body)
	}
	for name, c := range map[string]struct {
		token, path string
		status      int
		problem     string
	}{
		"of who has moved":           {token, proofPath(e, theirs), 404, "proof-not-found"},
		"of who came later":          {token, proofPath(e, own, "occupancy", "2020-01-01"), 404, "proof-not-found"},
		"of another metering point":  {token, proofPath(e, elsewhere), 404, "proof-not-found"},
		"of nothing":                 {token, proofPath(e, uuid.NewString()), 404, "proof-not-found"},
		"at another metering point":  {token, proofPath(other, elsewhere), 403, "not-permitted"},
		"of nobody's days":           {token, proofPath(e, own, "occupancy", "2021-01-01"), 400, "invalid-parameters"},
		"of no entry":                {token, proofPath(e, "x"), 400, "invalid-parameters"},
		"of zeros":                   {token, proofPath(e, uuid.Nil.String()), 400, "invalid-parameters"},
		"at an unknown place":        {w.view(w.ean(9), authz.Agent), proofPath(w.ean(9), own), 404, "metering-point-not-found"},
		"of a parameter there isn't": {token, proofPath(e, own, "supplier", w.a.gln.String()), 400, "invalid-parameters"},
	} {
		if r := w.asStaff(c.token, c.path); r.status != c.status || r.problem(t) != c.problem {
			t.Errorf("%s: %d %s", name, r.status, r.body)
		}
	}
	// The database's role cannot list what it may have of one.
	gateway := w.db.Open(t, "kluis_gateway")
	for _, statement := range []string{`SELECT salt FROM access_log`, `SELECT index FROM audit_leaf`, `INSERT INTO audit_hash VALUES (99999, '\x00')`} {
		if _, err := gateway.Exec(statement); err == nil {
			t.Errorf("%s is allowed", statement)
		}
	}

	// A record that was altered in the database is not vouched for.
	w.sql(`UPDATE access_log SET salt = '\x00112233445566778899aabbccddeeff' WHERE interaction_id = $1::uuid`, own)
	if r := w.asStaff(token, proofPath(e, own)); r.status != 500 || r.problem(t) != "evidence-invalid" {
		t.Errorf("altered: %d %s", r.status, r.body)
	}
	w.sql(`UPDATE audit_checkpoint SET note = replace(encode(note, 'escape'), 'test.example', 'best.example')::bytea`)
	if r := w.asStaff(token, proofPath(e, both)); r.status != 500 || r.problem(t) != "evidence-invalid" {
		t.Errorf("a head that nobody signed: %d %s", r.status, r.body)
	}
}
