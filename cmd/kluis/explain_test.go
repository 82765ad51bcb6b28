package main

import (
	"bytes"
	"database/sql"
	"encoding/json"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	"kluis/authz"
	"kluis/cryptoserver/envelope"
	"kluis/internal/audit"
	"kluis/internal/config"
	"kluis/internal/devpki"
	"kluis/internal/postgres"
	"kluis/meter"
	"kluis/migrations"
)

// explainWorld is a world with what a gateway has, to make decisions and
// records as it does.
type explainWorld struct {
	*world
	gateway *postgres.Gateway
	owner   *sql.DB
	seals   *authz.SealKeys
	ean     meter.EAN
	gln     meter.GLN
	other   meter.GLN
	today   meter.Day
}

func newExplainWorld(t *testing.T) *explainWorld {
	t.Helper()
	w := &explainWorld{world: newWorld(t)}
	w.setUp()
	crt, _ := w.certificate("other", w.ca, devpki.Leaf{})
	w.must("supplier", "add", "--gln", otherGLN, "--name", "Duinstroom", "--certificate", crt)
	var err error
	if w.gateway, err = postgres.NewGateway(t.Context(), postgres.Config{DSN: w.db.URL(migrations.RoleGateway)}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { w.gateway.Close() })
	for range 2 { // the second gateway that starts
		if err := w.gateway.KeepProfile(t.Context(), meter.NL()); err != nil {
			t.Fatal(err)
		}
	}
	w.owner = w.db.Open(t, migrations.RoleOwner)
	keys, err := config.PublicKeys(w.sealKeysFile())
	if err != nil {
		t.Fatal(err)
	}
	if w.seals, err = authz.NewSealKeys(keys...); err != nil {
		t.Fatal(err)
	}
	w.ean, _ = meter.ParseEAN(testEAN)
	w.gln, _ = meter.ParseGLN(testGLN)
	w.other, _ = meter.ParseGLN(otherGLN)
	w.today = meter.DayOf(time.Now(), w.profile.Location())
	return w
}

func (w *explainWorld) sealKeysFile() string {
	w.t.Helper()
	c, err := config.Load[config.Operator](w.config)
	if err != nil {
		w.t.Fatal(err)
	}
	return c.SealKeysFile
}

type asked struct {
	gln        meter.GLN
	purpose    meter.Purpose
	days       meter.DayRange
	fields     []string
	resolution meter.Resolution
	at         time.Time // of the gateway's decision
	opened     time.Time // of the cryptoserver's; zero: the same
}

type testCaller meter.GLN

func (c testCaller) Supplier() meter.GLN       { return meter.GLN(c) }
func (c testCaller) Employee() *authz.Employee { return nil }

// read decides as gateway and cryptoserver do, and records it as they do.
// alter changes the record before it is stored.
func (w *explainWorld) read(q asked, alter func(*audit.Record)) string {
	w.t.Helper()
	ctx := w.t.Context()
	if q.at.IsZero() {
		q.at = time.Now()
	}
	q.at = q.at.UTC().Truncate(time.Microsecond)
	if q.opened.IsZero() {
		q.opened = q.at
	}
	stored, err := w.gateway.LegalFile(ctx, w.ean)
	if err != nil {
		w.t.Fatal(err)
	}
	f, err := w.seals.LegalFile(stored.Sealed)
	if err != nil {
		w.t.Fatal(err)
	}
	r := audit.Record{InteractionID: uuid.New(), At: q.at, Supplier: q.gln, Operation: audit.Readings, EAN: w.ean, Purpose: q.purpose, Days: q.days, Resolution: q.resolution, Profile: w.profile.Digest()}
	for _, name := range q.fields {
		field, _ := w.profile.Field(name)
		r.Fields = append(r.Fields, field.Code)
	}
	request := authz.Request{EAN: w.ean, Purpose: q.purpose, Days: q.days, Fields: r.Fields, Resolution: q.resolution}
	grant, withheld, err := authz.Decide(testCaller(q.gln), request, f, w.profile, q.at)
	if err != nil {
		r.Outcome = audit.NoRelation
	} else {
		r.LegalFile, r.FileVersion = f.Digest(), f.Version()
		r.Granted, r.Withheld, r.Outcome = audit.GrantedItems(grant), withheld, audit.Withheld
		if !grant.Empty() {
			// As server/reconcile.go.
			_, later, err := authz.Decide(testCaller(q.gln), request, f, w.profile, q.opened)
			if err != nil {
				w.t.Fatal(err)
			}
			r.Outcome, r.Withheld = audit.Partly, slices.Clone(later)
			for _, x := range withheld {
				left := meter.NewDaySet(x.Days)
				for _, y := range later {
					if y.Field == x.Field {
						left = left.Subtract(meter.NewDaySet(y.Days))
					}
				}
				for _, run := range left.Ranges() {
					r.Withheld = append(r.Withheld, authz.Withheld{Field: x.Field, Days: run, Reason: x.Reason})
				}
			}
			r.Receipt = envelope.Receipt{ServerID: "cryptoserver-1", BootID: [16]byte{1}, Sequence: 1, At: q.opened, InteractionID: r.InteractionID,
				Supplier: r.Supplier, EAN: r.EAN, Purpose: r.Purpose, LegalFile: r.LegalFile, FileVersion: r.FileVersion, Profile: r.Profile, Opened: 3}.Encode()
		}
	}
	if alter != nil {
		alter(&r)
	}
	if err := w.gateway.Record(ctx, r); err != nil {
		w.t.Fatal(err)
	}
	return uuid.UUID(r.InteractionID).String()
}

func (w *explainWorld) explain(id string) (int, explanationView, string) {
	w.t.Helper()
	code, out, complaint := w.kluis("explain", "--json", "--interaction", id, "--ean", testEAN)
	var views []explanationView
	if out != "" {
		if err := json.Unmarshal([]byte(out), &views); err != nil || len(views) != 1 {
			w.t.Fatalf("%v: %s", err, out)
		}
		return code, views[0], complaint
	}
	return code, explanationView{}, complaint
}

func (w *explainWorld) exec(query string, args ...any) {
	w.t.Helper()
	if _, err := w.owner.ExecContext(w.t.Context(), query, args...); err != nil {
		w.t.Fatal(err)
	}
}

func TestExplain(t *testing.T) {
	t.Parallel()
	w := newExplainWorld(t)
	week := meter.DayRange{From: w.today - 10, To: w.today - 3}
	registers := []string{"import_low", "import_normal"}

	lawful := w.read(asked{gln: w.gln, purpose: meter.EnergyManagement, days: week, fields: registers}, nil)
	code, v, complaint := w.explain(lawful)
	if code != exitOK || v.Verdict != "AGREES" || v.Hindsight != nil || v.LegalFile.Version != 3 || v.Name != "Polderstroom" ||
		v.Profile.FirstUsed == nil || len(v.Answer) != 1 || !v.Answer[0].Given || !slices.Equal(v.Answer[0].Fields, registers) || v.Answer[0].Rule == "" || len(v.Rules) != 1 {
		t.Fatalf("exit code %d: %s%+v", code, complaint, v)
	}
	if v.Answer[0].From != week.From.String() || v.Answer[0].To != week.To.String() || v.Opening == nil || v.AuditLog.Leaf != nil {
		t.Errorf("%+v", v)
	}
	want := []factLine{{"supply", daysView{"2023-01-01", ""}, "by the caller"}, {"occupancy", daysView{"2023-01-01", ""}, ""}}
	if !slices.Equal(v.Facts, want) {
		t.Errorf("facts %+v", v.Facts)
	}

	// What is withheld, and why.
	refused := w.read(asked{gln: w.gln, purpose: meter.EnergyManagement, days: week, fields: []string{"import_intervals"}}, nil)
	if code, v, _ := w.explain(refused); code != exitOK || v.Verdict != "AGREES" || len(v.Answer) != 1 || v.Answer[0].Reason != "NO_CONSENT" || v.Answer[0].Why == "" || v.Opening != nil {
		t.Errorf("exit code %d: %+v", code, v)
	}

	// Nothing to do with it: the record names no version.
	stranger := w.read(asked{gln: w.other, purpose: meter.EnergyManagement, days: week, fields: registers}, nil)
	if code, v, _ := w.explain(stranger); code != exitOK || v.Verdict != "AGREES" || !strings.Contains(v.Why, "By version 3 of the legal file") || v.LegalFile == nil {
		t.Errorf("exit code %d: %+v", code, v)
	}
	out := w.must("explain", "--interaction", stranger, "--ean", testEAN)
	if strings.Contains(out, testGLN) || strings.Contains(out, "by the caller") {
		t.Errorf("it tells of others: %s", out)
	}

	// A consent is named, and that it was revoked since.
	var given consentView
	if err := json.Unmarshal([]byte(w.must("consent", "grant", "--json", "--ean", testEAN, "--supplier", testGLN, "--granularity", "PT15M", "--from", "2024-01-01",
		"--valid-until", (w.today+100).String(), "--evidence", "contract-4711")), &given); err != nil {
		t.Fatal(err)
	}
	consented := w.read(asked{gln: w.gln, purpose: meter.EnergyManagement, days: week, fields: []string{"import_intervals"}}, nil)
	if code, v, _ := w.explain(consented); code != exitOK || !strings.Contains(v.Answer[0].Why, given.ID) || v.Answer[0].Basis != "CONSENT" || v.Hindsight != nil {
		t.Errorf("exit code %d: %+v", code, v)
	}
	// The refusal before it would be none today.
	if code, v, _ := w.explain(refused); code != exitOK || v.Verdict != "AGREES" || v.Hindsight != nil {
		// The consent counts from its grant, which is after the request.
		t.Errorf("exit code %d: %+v", code, v)
	}
	w.must("consent", "revoke", "--ean", testEAN, "--id", given.ID)
	if code, v, _ := w.explain(consented); code != exitOK || v.Verdict != "AGREES" || v.Hindsight == nil || !strings.Contains(v.Hindsight.Verdict, "the consent was revoked since") ||
		v.Hindsight.Changes[0].Else.Reason != "CONSENT_REVOKED" || !strings.Contains(v.Hindsight.Changes[0].Else.Why, given.ID) {
		t.Errorf("exit code %d: %+v", code, v)
	}

	// A backdated switch: the caller was not the supplier any more since before
	// the days that it read.
	w.must("supply", "set", "--ean", testEAN, "--supplier", otherGLN, "--from", (week.From + 2).String())
	code, v, _ = w.explain(lawful)
	if code != exitOK || v.Verdict != "AGREES" || v.Hindsight == nil || !strings.Contains(v.Hindsight.Verdict, "Lawful when read, by version 3") ||
		!strings.Contains(v.Hindsight.Verdict, "by version 6") || len(v.Hindsight.Changes) != 1 || len(v.Hindsight.ChangedBy) != 1 || v.Hindsight.ChangedBy[0].Version != 6 {
		t.Fatalf("exit code %d: %+v, %+v", code, v, v.Hindsight)
	}
	if c := v.Hindsight.Changes[0]; c.From != (week.From+2).String() || c.To != week.To.String() || !c.Then.Given || c.Else.Reason != "NO_SUPPLY" {
		t.Errorf("%+v", c)
	}
	out = w.must("explain", "--interaction", lawful, "--ean", testEAN)
	for _, text := range []string{"Polderstroom (" + testGLN + ")", "AGREES", "TODAY: Lawful when read", "withheld NO_SUPPLY", "changed by version 6", "not in the audit log yet"} {
		if !strings.Contains(out, text) {
			t.Errorf("lacks %q: %s", text, out)
		}
	}
	if strings.Contains(out, otherGLN) {
		t.Errorf("it names another supplier: %s", out)
	}
	// And the stranger of then would be none today.
	if code, v, _ := w.explain(stranger); code != exitOK || v.Verdict != "AGREES" {
		t.Errorf("exit code %d: %+v", code, v)
	}

	// By interaction alone it takes the audit log.
	if code, _, complaint := w.kluis("explain", "--interaction", lawful); code != exitFailed || !strings.Contains(complaint, "--ean") {
		t.Errorf("exit code %d: %s", code, complaint)
	}
	_, stop := w.audit()
	for began := time.Now(); ; time.Sleep(100 * time.Millisecond) {
		code, out, complaint := w.kluis("explain", "--interaction", lawful)
		if code == exitOK && strings.Contains(out, "proven against the checkpoint") {
			break
		}
		if time.Since(began) > 60*time.Second {
			t.Fatalf("not proven: exit code %d: %s%s", code, out, complaint)
		}
	}
	stop()
	for _, args := range [][]string{{"--interaction", uuid.NewString(), "--ean", testEAN}, {"--interaction", uuid.NewString()}, {"--interaction", lawful, "--ean", otherEAN}} {
		if code, _, complaint := w.kluis(append([]string{"explain"}, args...)...); code != exitFailed || !strings.Contains(complaint, "no access record") {
			t.Errorf("%v: exit code %d: %s", args, code, complaint)
		}
	}
	// Altered after it was logged.
	w.exec(`UPDATE access_log SET salt = decode(repeat('ab', 16), 'hex') WHERE interaction_id = $1`, lawful)
	if code, _, complaint := w.kluis("explain", "--interaction", lawful); code != exitFindings || !strings.Contains(complaint, "is not what was logged") {
		t.Errorf("exit code %d: %s", code, complaint)
	}
	w.exec(`DELETE FROM access_log WHERE interaction_id = $1`, lawful)
	if code, _, complaint := w.kluis("explain", "--interaction", lawful); code != exitFindings || !strings.Contains(complaint, "not there any more") {
		t.Errorf("exit code %d: %s", code, complaint)
	}
}

// TestExplainMidnight: the two decisions of one request, before and after
// midnight.
func TestExplainMidnight(t *testing.T) {
	t.Parallel()
	w := newExplainWorld(t)
	midnight := w.today.Start(w.profile.Location())
	oldest := w.today.AddMonths(-w.profile.RetentionMonths())
	for name, days := range map[string]meter.DayRange{
		"the oldest day is too old for the cryptoserver": {From: (w.today - 1).AddMonths(-w.profile.RetentionMonths()), To: oldest + 3},
		"the newest day is over for the cryptoserver":    {From: w.today - 5, To: w.today + 1},
	} {
		id := w.read(asked{gln: w.gln, purpose: meter.EnergyManagement, days: days, fields: []string{"import_low"},
			at: midnight.Add(-time.Second), opened: midnight.Add(time.Second)}, nil)
		code, v, complaint := w.explain(id)
		if code != exitOK || v.Verdict != "AGREES" {
			t.Errorf("%s: exit code %d: %s%+v", name, code, complaint, v)
			continue
		}
		if first := days.From < oldest; first != (len(v.Later) == 1) || first && (v.Later[0].Reason != "PERIOD_TOO_OLD" || v.Later[0].From != days.From.String()) {
			t.Errorf("%s: %+v", name, v.Later)
		}
		for _, l := range v.Answer {
			if l.Given && (l.From < oldest.String() || l.To > (w.today-1).String() && days.To > w.today) {
				t.Errorf("%s: said to be given: %+v", name, l)
			}
		}
		out := w.must("explain", "--interaction", id, "--ean", testEAN)
		if strings.Contains(out, "decided later by its own clock") != (days.From < oldest) {
			t.Errorf("%s: %s", name, out)
		}
	}
	// What was stored decided the rest.
	week := meter.DayRange{From: w.today - 10, To: w.today - 3}
	field, _ := w.profile.Field("import_low")
	id := w.read(asked{gln: w.gln, purpose: meter.EnergyManagement, days: week, fields: []string{"import_low"}}, func(r *audit.Record) {
		r.Withheld = append(r.Withheld, authz.Withheld{Field: field.Code, Days: meter.DayRange{From: week.From + 1, To: week.From + 2}, Reason: meter.Damaged})
	})
	if code, v, _ := w.explain(id); code != exitOK || v.Verdict != "AGREES" || len(v.OnOpening) != 1 || v.OnOpening[0].Reason != "DAMAGED" || len(v.Answer) != 3 {
		t.Errorf("exit code %d: %+v", code, v)
	}
}

// TestExplainDryRun: what was told is told again.
func TestExplainDryRun(t *testing.T) {
	t.Parallel()
	w := newExplainWorld(t)
	period := meter.DayRange{From: w.today - 800, To: w.today + 1}
	dry := func(purpose meter.Purpose, alter func(*audit.Record)) string {
		at := time.Now().UTC().Truncate(time.Microsecond)
		return w.read(asked{gln: w.gln, purpose: meter.EnergyManagement, days: period, at: at}, func(r *audit.Record) {
			stored, err := w.gateway.LegalFile(t.Context(), w.ean)
			if err != nil {
				t.Fatal(err)
			}
			f, err := w.seals.LegalFile(stored.Sealed)
			if err != nil {
				t.Fatal(err)
			}
			for _, field := range w.profile.Fields(f.Commodity()) {
				r.Fields = append(r.Fields, field.Code)
			}
			slices.Sort(r.Fields)
			a, err := authz.DryRun(testCaller(w.gln), authz.AccessRequest{EAN: w.ean, Purpose: purpose, Days: period, Fields: r.Fields}, f, w.profile, at)
			if err != nil {
				t.Fatal(err)
			}
			r.Operation, r.Purpose, r.Outcome, r.Withheld, r.Receipt, r.Granted = audit.DryRun, purpose, audit.Given, nil, nil, audit.AccessItems(a)
			if alter != nil {
				alter(r)
			}
		})
	}
	for _, purpose := range []meter.Purpose{0, meter.Billing} {
		code, v, complaint := w.explain(dry(purpose, nil))
		if code != exitOK || v.Verdict != "AGREES" || v.Request.Operation != "dry_run" || len(v.Answer) == 0 {
			t.Errorf("exit code %d: %s%+v", code, complaint, v)
		}
		if !slices.ContainsFunc(v.Answer, func(l lineView) bool { return l.Purpose == "BILLING" && l.Given }) {
			t.Errorf("%+v", v.Answer)
		}
	}
	id := dry(0, func(r *audit.Record) { r.Granted = r.Granted[1:] })
	if code, v, _ := w.explain(id); code != exitFindings || v.Verdict != "DIFFERS" || len(v.Differences) == 0 {
		t.Errorf("exit code %d: %+v", code, v)
	}
}

// staff is an employee of the grid operator.
type staff struct {
	gln meter.GLN
	e   authz.Employee
}

func (c staff) Supplier() meter.GLN       { return c.gln }
func (c staff) Employee() *authz.Employee { return &c.e }

// TestExplainEmployee: what an employee read, or was told, and what for.
func TestExplainEmployee(t *testing.T) {
	t.Parallel()
	w := newExplainWorld(t)
	week := meter.DayRange{From: w.today - 10, To: w.today - 3}
	stored, err := w.gateway.LegalFile(t.Context(), w.ean)
	if err != nil {
		t.Fatal(err)
	}
	f, err := w.seals.LegalFile(stored.Sealed)
	if err != nil {
		t.Fatal(err)
	}
	operator, err := meter.ParseGLN("8712000000035")
	if err != nil {
		t.Fatal(err)
	}
	low, _ := w.profile.Field("import_low")
	const subject, reason = "https://idp.example#jan", "ticket-4711"
	base := audit.Record{Supplier: operator, Employee: subject, Reason: reason, EAN: w.ean, Days: week, Fields: []meter.FieldCode{low.Code}, Profile: w.profile.Digest(),
		Outcome: audit.Given, LegalFile: f.Digest(), FileVersion: f.Version()}
	record := func(change func(*audit.Record)) string {
		r := base
		r.InteractionID, r.At = uuid.New(), time.Now().UTC().Truncate(time.Microsecond)
		change(&r)
		if err := w.gateway.Record(t.Context(), r); err != nil {
			t.Fatal(err)
		}
		return uuid.UUID(r.InteractionID).String()
	}
	reading := func(digest [32]byte) func(*audit.Record) {
		return func(r *audit.Record) {
			r.Operation, r.Purpose = audit.Readings, meter.CustomerService
			who := staff{operator, authz.Employee{Subject: subject, Role: authz.Supervisor, Errand: authz.Errand{Kind: authz.ErrandReadings, EAN: w.ean, Reason: reason,
				Days: meter.DayRange{From: week.From - 5, To: week.To + 5}, Fields: []meter.FieldCode{low.Code, low.Code + 1}}}}
			grant, withheld, err := authz.Decide(who, authz.Request{EAN: w.ean, Purpose: r.Purpose, Days: r.Days, Fields: r.Fields}, f, w.profile, r.At)
			if err != nil || grant.Empty() {
				t.Fatal(err, withheld)
			}
			r.Granted = audit.GrantedItems(grant)
			r.Receipt = envelope.Receipt{ServerID: "cryptoserver-1", BootID: [16]byte{1}, Sequence: 1, At: r.At, InteractionID: r.InteractionID, Supplier: operator,
				Employee: digest, EAN: w.ean, Purpose: r.Purpose, LegalFile: r.LegalFile, FileVersion: r.FileVersion, Profile: r.Profile, Opened: 8}.Encode()
		}
	}
	id := record(reading(envelope.EmployeeDigest([32]byte{}, subject, reason)))
	if code, v, complaint := w.explain(id); code != exitOK || v.Verdict != "AGREES" || v.Employee != subject || v.Reason != reason || v.Answer[0].Basis != "CUSTOMER_SERVICE" {
		t.Errorf("exit code %d: %s%+v", code, complaint, v)
	}
	if out := w.must("explain", "--interaction", id, "--ean", testEAN); !strings.Contains(out, `Employee "`+subject+`", because "ticket-4711": asked for `+testEAN) {
		t.Error(out)
	}
	// Another employee's name in the record.
	id = record(reading(envelope.EmployeeDigest([32]byte{}, "https://idp.example#piet", reason)))
	if code, _, complaint := w.explain(id); code != exitFindings || !strings.Contains(complaint, "receipt is of another request") {
		t.Errorf("exit code %d: %s", code, complaint)
	}

	told := func(who authz.Caller) func(*audit.Record) {
		return func(r *audit.Record) {
			r.Operation = audit.DryRun
			a, err := authz.DryRun(who, authz.AccessRequest{EAN: w.ean, Days: r.Days, Fields: r.Fields}, f, w.profile, r.At)
			if err != nil {
				t.Fatal(err)
			}
			r.Granted = audit.AccessItems(a)
		}
	}
	view := func(role authz.Role) authz.Caller {
		return staff{operator, authz.Employee{Subject: subject, Role: role, Errand: authz.Errand{Kind: authz.ErrandView, EAN: w.ean, Reason: reason}}}
	}
	for name, c := range map[string]struct {
		who   authz.Caller
		about string
		given bool
	}{
		"its own":                {view(authz.Agent), "", true},
		"its own, of an auditor": {view(authz.Auditor), "", false},
		"a supplier's":           {authz.OnBehalfOf(view(authz.Agent), w.gln), testGLN, true},
	} {
		code, v, complaint := w.explain(record(told(c.who)))
		if code != exitOK || v.Verdict != "AGREES" || v.About != c.about || c.given != slices.ContainsFunc(v.Answer, func(l lineView) bool { return l.Given }) {
			t.Errorf("%s: exit code %d: %s%+v", name, code, complaint, v)
		}
	}
	id = record(func(r *audit.Record) {
		told(view(authz.Agent))(r)
		r.Granted[0].Rule = "another"
	})
	if code, v, _ := w.explain(id); code != exitFindings || v.Verdict != "DIFFERS" || v.About != "" {
		t.Errorf("exit code %d: %+v", code, v)
	}
	id = record(func(r *audit.Record) {
		r.Operation, r.Outcome, r.LegalFile, r.FileVersion = audit.DryRun, audit.NoRelation, [32]byte{}, 0
	})
	if code, v, _ := w.explain(id); code != exitOK || v.Verdict != "AGREES" || !strings.Contains(v.Why, "was not sent for this") {
		t.Errorf("exit code %d: %+v", code, v)
	}
	id = record(func(r *audit.Record) {
		r.Operation, r.Fields, r.Profile, r.LegalFile, r.FileVersion = audit.AccessLog, nil, [32]byte{}, [32]byte{}, 0
	})
	if code, v, _ := w.explain(id); code != exitOK || v.Verdict != "NOT_DECIDED" || v.Request.Operation != "access_log" {
		t.Errorf("exit code %d: %+v", code, v)
	}
	if out := w.must("explain", "--interaction", id, "--ean", testEAN); !strings.Contains(out, `because "ticket-4711": looked at the access log at `+testEAN+".\n") {
		t.Error(out)
	}
}

// TestExplainSays: what was done, and by whom; what was not done does not read
// as done.
func TestExplainSays(t *testing.T) {
	t.Parallel()
	const id, ean = "0b8e2f8a-0000-4000-8000-000000000001", "871687200000000010"
	step := func(action authz.ConsentAction) requestView {
		return requestView{Operation: audit.ConsentStep.String(), Step: action.String(), Consent: id}
	}
	for _, c := range []struct {
		request  requestView
		outcome  audit.Outcome
		employee bool
		want     string
	}{
		{step(authz.ActionRevoke), audit.Given, true, `Employee "jan", because "ticket-1": revoked consent ` + id + " at " + ean + "."},
		{step(authz.ActionRevoke), audit.Refused, true, `Employee "jan", because "ticket-1": tried to revoke consent ` + id + " at " + ean + ", and did not."},
		{step(authz.ActionGrant), audit.Given, true, "granted consent " + id},
		{step(authz.ActionGrant), audit.Failed, true, "tried to grant consent " + id},
		{step(authz.ActionReject), audit.Given, true, "rejected consent " + id},
		{step(authz.ActionReject), audit.NoRelation, true, "tried to reject consent " + id},
		{step(authz.ActionRegister), audit.Given, true, "registered consent " + id},
		{requestView{Operation: audit.ConsentStep.String(), Step: authz.ActionRegister.String()}, audit.Refused, true, "tried to register a consent at " + ean + ", and did not."},
		{step(authz.ActionRequest), audit.Given, false, "Polderstroom (8712000000011) asked for consent " + id + " at " + ean + "."},
		{requestView{Operation: audit.Consents.String(), Consent: id}, audit.Given, false, "looked at consent " + id + " at " + ean + "."},
		{requestView{Operation: audit.Consents.String()}, audit.NoRelation, false, "tried to look at the consents at " + ean + "."},
		{requestView{Operation: audit.AccessLog.String()}, audit.Given, true, "looked at the access log at " + ean + "."},
		{requestView{Operation: audit.Connection.String()}, audit.NoRelation, true, "tried to look at the connection at " + ean + "."},
		{requestView{Operation: audit.Find.String()}, audit.Given, true, "looked for an address, and found " + ean + "."},
		{requestView{Operation: audit.Oversee.String()}, audit.Given, true, "looked at suppliers, health or oversight."},
		{requestView{Operation: audit.SupplierStep.String(), Step: "suspend", Target: otherGLN}, audit.Given, true, "suspended supplier " + otherGLN + "."},
		{requestView{Operation: audit.SupplierStep.String(), Step: "resume", Target: otherGLN}, audit.Given, true, "resumed supplier " + otherGLN + "."},
		{requestView{Operation: audit.SupplierStep.String(), Step: "resume", Target: otherGLN}, audit.Refused, true, "tried to resume supplier " + otherGLN + ", and did not."},
		{requestView{Operation: audit.Readings.String(), Purpose: "BILLING", From: "2026-03-01", To: "2026-04-01", AsOf: "2026-03-15T12:00:00Z"}, audit.Given, false,
			" for BILLING, 2026-03-01 to 2026-04-01, as stored at 2026-03-15T12:00:00Z."},
	} {
		v := explanationView{Supplier: "8712000000011", Name: "Polderstroom", EAN: ean, Certificate: strings.Repeat("0", 64), Request: c.request, Outcome: c.outcome.String()}
		if c.employee {
			v.Employee, v.Reason = "jan", "ticket-1"
		}
		var b strings.Builder
		if err := v.print(&b); err != nil || !strings.Contains(b.String(), c.want) {
			t.Errorf("%v, want %s:\n%s", err, c.want, b.String())
		}
	}
}

// TestExplainTampered: a record that its evidence does not bear out, and
// evidence that is not what was decided on.
func TestExplainTampered(t *testing.T) {
	t.Parallel()
	w := newExplainWorld(t)
	week := meter.DayRange{From: w.today - 10, To: w.today - 3}
	q := asked{gln: w.gln, purpose: meter.EnergyManagement, days: week, fields: []string{"import_low"}}

	// Records that say something else than the decision, each with a receipt of
	// its own that is right.
	for name, alter := range map[string]func(*audit.Record){
		"a day more": func(r *audit.Record) {
			r.Granted[0].Days = meter.NewDaySet(meter.DayRange{From: week.From, To: week.To + 1})
		},
		"a day less": func(r *audit.Record) {
			r.Granted[0].Days = meter.NewDaySet(meter.DayRange{From: week.From + 1, To: week.To})
		},
		"another rule":  func(r *audit.Record) { r.Granted[0].Rule = "another" },
		"another basis": func(r *audit.Record) { r.Granted[0].Basis = meter.Consent },
		"finer":         func(r *audit.Record) { r.Granted[0].Granularity = meter.PT15M },
		"another kind":  func(r *audit.Record) { r.Granted[0].Kind = meter.Consumption },
		"another field": func(r *audit.Record) { r.Granted[0].Field++ },
		"a reason for it": func(r *audit.Record) {
			r.Withheld = append(r.Withheld, authz.Withheld{Field: r.Fields[0], Days: week, Reason: meter.OptedOut})
		},
		"an earlier time":  func(r *audit.Record) { r.At = r.At.AddDate(0, 0, -8) },
		"nothing withheld": nil,
	} {
		var id string
		if alter == nil {
			q := q
			q.fields = []string{"import_intervals"}
			id = w.read(q, func(r *audit.Record) { r.Withheld = nil })
		} else {
			id = w.read(q, alter)
		}
		code, v, complaint := w.explain(id)
		if code != exitFindings || v.Verdict != "DIFFERS" || len(v.Differences) == 0 || complaint != "" {
			t.Errorf("%s: exit code %d: %s%+v", name, code, complaint, v)
		}
		if code, out, _ := w.kluis("explain", "--interaction", id, "--ean", testEAN); code != exitFindings || !strings.Contains(out, "DIFFERS") || !strings.Contains(out, "DECIDED AGAIN") {
			t.Errorf("%s: exit code %d: %s", name, code, out)
		}
	}
	// A caller that had nothing to do with it.
	id := w.read(q, func(r *audit.Record) {
		r.Supplier = w.other
		rc, err := envelope.ParseReceipt(r.Receipt)
		if err != nil {
			t.Fatal(err)
		}
		rc.Supplier = w.other
		r.Receipt = rc.Encode()
	})
	if code, v, _ := w.explain(id); code != exitFindings || v.Verdict != "DIFFERS" || !strings.Contains(v.Why, "nothing to do with") {
		t.Errorf("exit code %d: %+v", code, v)
	}
	// Decided by an older file, long after a newer one was sealed.
	late := w.read(asked{gln: w.gln, purpose: meter.EnergyManagement, days: week, fields: []string{"import_low"}, at: time.Now().Add(time.Hour)}, nil)
	w.must("supply", "set", "--ean", testEAN, "--supplier", otherGLN, "--from", w.today.String())
	if code, v, _ := w.explain(late); code != exitFindings || v.Verdict != "DIFFERS" || !strings.Contains(v.Why, "an older file was presented") {
		t.Errorf("exit code %d: %+v", code, v)
	}

	good := w.read(q, nil)
	early := w.read(asked{gln: w.other, purpose: meter.EnergyManagement, days: week, fields: []string{"import_low"}, at: time.Now().AddDate(-1, 0, 0)},
		func(r *audit.Record) {
			r.Outcome, r.LegalFile, r.FileVersion, r.Granted, r.Withheld, r.Receipt = audit.NoRelation, [32]byte{}, 0, nil, nil, nil
		})
	if code, v, _ := w.explain(early); code != exitOK || !strings.Contains(v.Why, "it was unknown") || v.LegalFile != nil {
		t.Errorf("exit code %d: %+v", code, v)
	}

	// Rows that were changed by who owns them. restore undoes it.
	var record, receipt, file3, file4 []byte
	if err := w.owner.QueryRowContext(t.Context(), `SELECT record, receipt FROM access_log WHERE interaction_id = $1`, good).Scan(&record, &receipt); err != nil {
		t.Fatal(err)
	}
	for version, into := range map[int]*[]byte{3: &file3, 4: &file4} {
		if err := w.owner.QueryRowContext(t.Context(), `SELECT file FROM legal_file WHERE ean = $1 AND version = $2`, w.ean.Int64(), version).Scan(into); err != nil {
			t.Fatal(err)
		}
	}
	flippedAt := func(b []byte, i int) []byte {
		b = slices.Clone(b)
		b[i] ^= 1
		return b
	}
	flipped := func(b []byte) []byte { return flippedAt(b, len(b)/2) }
	gas, err := meter.ParseEAN(testGas)
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		want string
		do   func()
	}{
		"a record changed": {"not an access record", func() {
			w.exec(`UPDATE access_log SET record = $1 WHERE interaction_id = $2`, flippedAt(record, 10), good)
		}},
		"a record cut off":  {"not an access record", func() { w.exec(`UPDATE access_log SET record = $1 WHERE interaction_id = $2`, record[:20], good) }},
		"a receipt changed": {"the receipt is not the record's", func() { w.exec(`UPDATE access_log SET receipt = $1 WHERE interaction_id = $2`, flipped(receipt), good) }},
		"no receipt":        {"the receipt is not the record's", func() { w.exec(`UPDATE access_log SET receipt = '' WHERE interaction_id = $1`, good) }},
		"another's record": {"that of another request", func() {
			w.exec(`UPDATE access_log SET (record, receipt) = (SELECT record, receipt FROM access_log WHERE interaction_id = $1) WHERE interaction_id = $2`, late, good)
		}},
		"a legal file changed": {"version 4 of the legal file: sealed fact does not verify", func() {
			w.exec(`UPDATE legal_file SET file = $1 WHERE ean = $2 AND version = 4`, flipped(file4), w.ean.Int64())
		}},
		"another version": {"version 4 of the legal file, by which it was decided, is not there: deleted", func() { w.exec(`UPDATE legal_file SET file = $1 WHERE ean = $2 AND version = 4`, file3, w.ean.Int64()) }},
		"no such version": {"version 4 of the legal file, by which it was decided, is not there, nor is a later one", func() { w.exec(`DELETE FROM legal_file WHERE ean = $1 AND version = 4`, w.ean.Int64()) }},
		"another metering point": {"it is of another metering point", func() {
			w.exec(`UPDATE legal_file SET file = (SELECT file FROM legal_file WHERE ean = $1 AND version = 3) WHERE ean = $2 AND version = 4`, gas.Int64(), w.ean.Int64())
		}},
		"no profile": {"is not stored: give its file with --profile", func() { w.exec(`DELETE FROM market_profile`) }},
		"another profile": {"its bytes have another digest", func() {
			w.exec(`ALTER TABLE market_profile DROP CONSTRAINT market_profile_check`)
			w.exec(`UPDATE market_profile SET profile = profile || '#'`)
		}},
	} {
		c.do()
		code, out, complaint := w.kluis("explain", "--interaction", good, "--ean", testEAN)
		if code != exitFindings || out != "" || !strings.Contains(complaint, c.want) || !strings.Contains(complaint, "evidence missing or altered") {
			t.Errorf("%s: exit code %d: %s%s", name, code, out, complaint)
		}
		w.exec(`UPDATE access_log SET record = $1, receipt = $2 WHERE interaction_id = $3`, record, receipt, good)
		w.exec(`DELETE FROM legal_file WHERE ean = $1 AND version = 4`, w.ean.Int64())
		w.exec(`INSERT INTO legal_file (ean, version, file, sealed_at) VALUES ($1, 4, $2, now())`, w.ean.Int64(), file4)
		w.exec(`DELETE FROM market_profile`)
		if err := w.gateway.KeepProfile(t.Context(), meter.NL()); err != nil {
			t.Fatal(err)
		}
		if code, _, complaint := w.kluis("explain", "--interaction", good, "--ean", testEAN); code != exitOK {
			t.Fatalf("after %s: exit code %d: %s", name, code, complaint)
		}
	}

	// A receipt that is of another decision, though it is the record's.
	for name, alter := range map[string]func(*envelope.Receipt){
		"file":        func(r *envelope.Receipt) { r.LegalFile[0] ^= 1 },
		"version":     func(r *envelope.Receipt) { r.FileVersion++ },
		"profile":     func(r *envelope.Receipt) { r.Profile[0] ^= 1 },
		"interaction": func(r *envelope.Receipt) { r.InteractionID[0] ^= 1 },
		"purpose":     func(r *envelope.Receipt) { r.Purpose = meter.Billing },
	} {
		id := w.read(q, func(r *audit.Record) {
			rc, err := envelope.ParseReceipt(r.Receipt)
			if err != nil {
				t.Fatal(err)
			}
			alter(&rc)
			r.Receipt = rc.Encode()
		})
		if code, _, complaint := w.kluis("explain", "--interaction", id, "--ean", testEAN); code != exitFindings || !strings.Contains(complaint, "receipt is of another request") {
			t.Errorf("%s: exit code %d: %s", name, code, complaint)
		}
	}

	// A record and a receipt of another file of this version.
	id = w.read(q, func(r *audit.Record) {
		rc, err := envelope.ParseReceipt(r.Receipt)
		if err != nil {
			t.Fatal(err)
		}
		r.LegalFile[0] ^= 1
		rc.LegalFile = r.LegalFile
		r.Receipt = rc.Encode()
	})
	if code, _, complaint := w.kluis("explain", "--interaction", id, "--ean", testEAN); code != exitFindings || !strings.Contains(complaint, "there have been two of them") {
		t.Errorf("exit code %d: %s", code, complaint)
	}

	// A profile that is not stored can be given by hand, and no other one.
	w.exec(`DELETE FROM market_profile`)
	path := filepath.Join(w.dir, "nl.yaml")
	if code, out, complaint := w.kluis("explain", "--interaction", good, "--ean", testEAN, "--profile", path); code != exitOK || !strings.Contains(out, "given by hand") {
		t.Errorf("exit code %d: %s%s", code, out, complaint)
	}
	path = w.write("other.yaml", append(bytes.Clone(meter.NL()), "# another\n"...))
	if code, _, complaint := w.kluis("explain", "--interaction", good, "--ean", testEAN, "--profile", path); code != exitFindings || !strings.Contains(complaint, "the market profile given has sha256") {
		t.Errorf("exit code %d: %s", code, complaint)
	}
	if err := w.gateway.KeepProfile(t.Context(), meter.NL()); err != nil {
		t.Fatal(err)
	}

	// Later versions are looked at too: one that is gone is a finding.
	w.must("supply", "set", "--ean", testEAN, "--supplier", testGLN, "--from", (w.today + 1).String())
	w.must("supply", "set", "--ean", testEAN, "--supplier", otherGLN, "--from", (w.today + 2).String())
	var file6 []byte
	if err := w.owner.QueryRowContext(t.Context(), `DELETE FROM legal_file WHERE ean = $1 AND version = 6 RETURNING file`, w.ean.Int64()).Scan(&file6); err != nil {
		t.Fatal(err)
	}
	w.exec(`DELETE FROM legal_file WHERE ean = $1 AND version = 5`, w.ean.Int64())
	w.must("supply", "set", "--ean", testEAN, "--supplier", testGLN, "--from", (w.today + 3).String()) // another version 5
	w.exec(`INSERT INTO legal_file (ean, version, file, sealed_at) VALUES ($1, 6, $2, now())`, w.ean.Int64(), file6)
	for _, name := range []string{"replaced", "gone"} {
		code, out, _ := w.kluis("explain", "--interaction", good, "--ean", testEAN)
		if code != exitFindings || !strings.Contains(out, "AGREES") || !strings.Contains(out, "version 6 does not follow") {
			t.Errorf("%s: exit code %d: %s", name, code, out)
		}
		w.exec(`DELETE FROM legal_file WHERE ean = $1 AND version = 5`, w.ean.Int64())
	}

	// What is not a decision about a metering point.
	list := audit.Record{InteractionID: uuid.New(), At: time.Now(), Operation: audit.List, Supplier: w.gln, Outcome: audit.Given}
	failed := audit.Record{InteractionID: uuid.New(), At: time.Now(), Operation: audit.Readings, Supplier: w.gln, EAN: w.ean, Purpose: meter.Billing, Days: week, Outcome: audit.Failed, Profile: w.profile.Digest()}
	for _, r := range []audit.Record{list, failed} {
		if err := w.gateway.Record(t.Context(), r); err != nil {
			t.Fatal(err)
		}
	}
	if code, v, _ := w.explain(uuid.UUID(failed.InteractionID).String()); code != exitOK || v.Verdict != "NOT_DECIDED" || !strings.Contains(v.Why, "did not verify") {
		t.Errorf("exit code %d: %+v", code, v)
	}
	_, stop := w.audit()
	defer stop()
	for began := time.Now(); ; time.Sleep(100 * time.Millisecond) {
		code, out, complaint := w.kluis("explain", "--interaction", uuid.UUID(list.InteractionID).String())
		if code == exitOK && strings.Contains(out, "Polderstroom ("+testGLN+") listed the caller's metering points.") && strings.Contains(out, "NOT DECIDED") {
			break
		}
		if time.Since(began) > 60*time.Second {
			t.Fatalf("exit code %d: %s%s", code, out, complaint)
		}
	}
}

// TestReasonWords: every reason has words for the operator.
func TestReasonWords(t *testing.T) {
	t.Parallel()
	for r := meter.Reason(1); r.String() != fmt.Sprintf("Reason(%d)", uint8(r)); r++ {
		if reasonWords[r] == "" {
			t.Errorf("no words for %s", r)
		}
	}
}
