package auditlog_test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"kluis/auditlog"
	"kluis/authz"
	"kluis/internal/audit"
	"kluis/meter"
)

// party is a supplier that is suspended and resumed by token.
type party struct {
	*world
	t      *testing.T
	key    authz.Signer
	gln    meter.GLN
	record *authz.Supplier
	stored int64 // version of the row
}

func staffActor(subject string) authz.Actor {
	return authz.Actor{Kind: authz.ByEmployee, Name: "https://id.test#" + subject}
}

func (p *party) sealed(payload []byte) []byte {
	p.t.Helper()
	return must(authz.Seal(payload, p.key))(p.t)
}

// alone stores a version without a record, as the registrar does.
func (p *party) alone(payload []byte) {
	p.t.Helper()
	p.stored++
	sealed := p.sealed(payload)
	p.exec(`INSERT INTO supplier (gln, version, record, sealed_at) VALUES ($1, $2, $3, now())`, p.gln.Int64(), p.stored, sealed)
	p.record = must(must(authz.NewSealKeys(p.extra...))(p.t).Supplier(sealed))(p.t)
}

// registered stores a version of the registrar's.
func (p *party) registered(change func(*authz.SupplierFacts)) {
	p.t.Helper()
	f := authz.SupplierFacts{GLN: p.gln, Name: "Energy", Suspended: p.record != nil && p.record.Suspended()}
	if change != nil {
		change(&f)
	}
	p.alone(must(authz.NewSupplier(p.record, f, registrar, time.Now()))(p.t).Payload())
}

// says is what an honest gateway records of a step, with the record as it is now.
func (p *party) says(by authz.Actor) audit.Record {
	return audit.Record{InteractionID: newID(), At: time.Now(), Operation: audit.SupplierStep, Supplier: must(meter.ParseGLN(operatorGLN))(p.t),
		Employee: by.Name, Reason: "ticket 12", Target: p.gln, Suspend: p.record.Suspended(), TargetVersion: p.record.Version(), TargetDigest: p.record.Digest(), Outcome: audit.Given}
}

// switches stores the next version with its record, as the gateway does; alter is
// what a captured one makes of the record.
func (p *party) switches(by authz.Actor, alter func(*audit.Record)) {
	p.t.Helper()
	next := must(authz.Suspend(p.record, !p.record.Suspended(), by, time.Now()))(p.t)
	p.record = next
	p.stored++
	r := p.says(by)
	if alter != nil {
		alter(&r)
	}
	p.check(p.world.gateway.StoreSupplier(p.t.Context(), next, p.sealed(next.Payload()), r))
}

func (p *party) told(r audit.Record) {
	p.t.Helper()
	p.check(p.world.gateway.Record(p.t.Context(), r))
}

// TestSupplierRecords: supplier records follow on one another, and what the access
// log says of suspensions is held to them.
func TestSupplierRecords(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	key := software{must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))(t)}
	w.extra = []*ecdsa.PublicKey{&key.PublicKey}
	kim, sam := staffActor("kim"), staffActor("sam")
	type details map[auditlog.What][]string
	const (
		byAnother = "its record tells that somebody else took the step"
		broken    = "it is not what may be made of the version before"
	)
	// byEmployee puts a version of the registrar's down to an employee.
	byEmployee := func(p *party, change func(*authz.SupplierFacts)) []byte {
		f := authz.SupplierFacts{GLN: p.gln, Name: "Energy", Suspended: true}
		change(&f)
		payload := bytes.Clone(must(authz.NewSupplier(p.record, f, registrar, time.Now()))(t).Payload())
		const actor = 4 + len("kluis/supplier") + 1 + 8 + 8 + 8 + 32
		payload[actor] = byte(authz.ByEmployee)
		return payload
	}
	cases := map[string]struct {
		alter func(p *party)
		after func(p *party) // once all is logged
		want  details
	}{
		"suspended and resumed": {alter: func(p *party) {
			p.switches(kim, nil)
			p.switches(sam, nil)
			p.registered(func(f *authz.SupplierFacts) { f.Name = "Power" })
			p.registered(func(f *authz.SupplierFacts) { f.Suspended = true })
			p.switches(kim, nil)
			p.told(p.says(sam)) // it was so already
		}},
		"steps that were not taken, and recorded so": {alter: func(p *party) {
			for _, o := range []audit.Outcome{audit.Refused, audit.Failed, audit.NoRelation} {
				r := p.says(kim)
				r.Outcome, r.TargetVersion, r.TargetDigest = o, 0, [32]byte{}
				p.told(r)
			}
		}},

		"put down to another employee": {func(p *party) {
			p.switches(kim, func(r *audit.Record) { r.Employee = sam.Name })
		}, nil, details{auditlog.StepOtherwise: {byAnother}}},
		"told as the other step": {func(p *party) {
			p.switches(kim, func(r *audit.Record) { r.Suspend = false })
		}, nil, details{auditlog.StepOtherwise: {"its record tells of another step"}, auditlog.RecordedNotTaken: {"the supplier's record does not say so"}}},
		"told as of another version": {func(p *party) {
			first := p.record
			p.switches(kim, func(r *audit.Record) {
				r.TargetVersion, r.TargetDigest, r.Suspend = first.Version(), first.Digest(), false
			})
		}, nil, details{auditlog.StepOtherwise: {"its record names another version, or another supplier"}}},
		"told as refused": {func(p *party) {
			p.switches(kim, func(r *audit.Record) { r.Outcome, r.TargetVersion, r.TargetDigest = audit.Refused, 0, [32]byte{} })
		}, nil, details{auditlog.StepNotRecorded: {"the record that came with it is not of a step that was taken"}}},
		"another record came with it": {func(p *party) {
			p.switches(kim, func(r *audit.Record) {
				*r = audit.Record{InteractionID: newID(), At: time.Now(), Operation: audit.Oversee, Supplier: r.Supplier, Employee: r.Employee, Reason: r.Reason, Outcome: audit.Given}
			})
		}, nil, details{auditlog.StepNotRecorded: {"the record that came with it is not of a step that was taken"}}},
		"without a record": {func(p *party) {
			p.alone(must(authz.Suspend(p.record, true, kim, time.Now()))(t).Payload())
		}, nil, details{auditlog.StepNotRecorded: {"no record came with it"}}},
		"recorded afterwards": {func(p *party) {
			p.alone(must(authz.Suspend(p.record, true, kim, time.Now()))(t).Payload())
			p.told(p.says(kim))
		}, nil, details{auditlog.StepNotRecorded: {"no record came with it"}}},
		"of nobody's": {func(p *party) {
			r := p.says(kim)
			r.Suspend = true
			p.told(r)
		}, nil, details{auditlog.RecordedNotTaken: {"the supplier's record does not say so"}}},
		"of a version that there is not": {func(p *party) {
			r := p.says(kim)
			r.TargetVersion++
			p.told(r)
		}, nil, details{auditlog.RecordedUnstored: {"no such version of the supplier's record is stored"}}},
		"of one that was kept back": {func(p *party) {
			honest := p.record
			p.record = must(authz.Suspend(honest, true, kim, time.Now()))(t)
			kept := p.says(kim)
			p.record = honest
			p.told(kept)
			p.switches(sam, nil)
		}, nil, details{auditlog.RecordedUnstored: {"no such version of the supplier's record is stored"}}},

		"an employee changed more": {func(p *party) {
			p.alone(byEmployee(p, func(f *authz.SupplierFacts) { f.Scopes = []string{"readings:read"} }))
		}, nil, details{auditlog.SupplierBroken: {broken}, auditlog.StepNotRecorded: {"no record came with it"}}},
		"a version made of another": {func(p *party) {
			fork := must(authz.NewSupplier(p.record, authz.SupplierFacts{GLN: p.gln, Name: "Fork"}, registrar, time.Now()))(t)
			onFork := must(authz.NewSupplier(fork, authz.SupplierFacts{GLN: p.gln, Name: "Fork"}, registrar, time.Now()))(t)
			p.registered(nil)
			p.alone(onFork.Payload())
		}, nil, details{auditlog.SupplierBroken: {"it was made of another version before it than is stored"}}},
		"a version that is missing": {func(p *party) {
			p.registered(nil)
			p.registered(nil)
		}, func(p *party) {
			p.tamper(`DELETE FROM supplier WHERE gln = $1 AND version = 2`, p.gln.Int64())
		}, details{auditlog.SupplierBroken: {"no version 2 is stored"}, auditlog.RowMissing: {""}}},
		"a record that nobody sealed": {func(p *party) { p.registered(nil) }, func(p *party) {
			p.tamper(`UPDATE supplier SET record = set_byte(record, 200, get_byte(record, 200) # 1) WHERE gln = $1 AND version = 2`, p.gln.Int64())
		}, details{auditlog.RowBad: {""}, auditlog.RowChanged: {""}}},
		"its record deleted": {func(p *party) { p.switches(kim, nil) }, func(p *party) {
			p.tamper(`DELETE FROM access_log a USING supplier s WHERE s.gln = $1 AND s.version = 2 AND a.arrived = s.arrived`, p.gln.Int64())
		}, details{auditlog.StepNotRecorded: {"no record came with it"}}},
	}
	parties := map[string]*party{}
	for i, name := range slices.Sorted(maps.Keys(cases)) {
		p := &party{world: w, t: t, key: key, gln: must(meter.ParseGLN(checkedGLN(fmt.Sprintf("871246%06d", i))))(t)}
		p.registered(nil)
		cases[name].alter(p)
		parties[name] = p
	}
	_, stop := w.auditing(w.store, w.servers(), w.export)
	w.settled()
	stop()
	for name, c := range cases {
		if c.after != nil {
			c.after(parties[name])
		}
	}
	r := w.verify()
	of := map[string]string{}
	for name, p := range parties {
		of[p.gln.String()] = name
	}
	found := map[string]details{}
	for _, f := range r.Findings {
		if f.What.IsNotice() {
			continue
		}
		name, known := of[f.GLN]
		if strings.Contains(f.String(), "id.test") {
			t.Errorf("names an employee: %s", f)
		}
		if !known {
			if f.What == auditlog.RowMissing && f.GLN == "" && f.Interaction != "" { // the record that was deleted
				continue
			}
			t.Errorf("of nobody: %s %s", f.What, f)
			continue
		}
		if found[name] == nil {
			found[name] = details{}
		}
		found[name][f.What] = append(found[name][f.What], f.Detail)
	}
	for name, c := range cases {
		if !maps.EqualFunc(found[name], c.want, slices.Equal) {
			t.Errorf("%s: found %q, want %q", name, found[name], c.want)
		}
	}
}

// checkedGLN adds the check digit.
func checkedGLN(digits string) string {
	for d := range 10 {
		if s := digits + fmt.Sprint(d); validGLN(s) {
			return s
		}
	}
	return ""
}

func validGLN(s string) bool {
	_, err := meter.ParseGLN(s)
	return err == nil
}
