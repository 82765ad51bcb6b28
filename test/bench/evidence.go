package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"runtime"
	"text/tabwriter"
	"time"

	"kluis/authz"
	"kluis/cryptoserver/envelope"
	"kluis/cryptoserver/journal"
	"kluis/internal/audit"
	"kluis/internal/config"
	"kluis/meter"
)

// What a request costs more because every read can be proven: its parts are
// measured one by one, each in a loop by itself, in the same rounds as the
// request. A request without them cannot be had from these programs, on
// purpose.

// evidencePart is one of them.
type evidencePart struct {
	Name  string       `json:"name"`
	Times int          `json:"times"` // in a request
	Fresh bool         `json:"fresh"` // stands in the place of partSeen when the legal file is new
	work  func() error // once
}

const (
	partCommit = "access record, committed" // by the loop of the floor, alone
	partSeen   = "legal file, verified before"
	// evidenceAim is the share of a request that evidence may take.
	evidenceAim = 0.15
	// together is how many calls are timed at once: one is too short.
	together = 100
)

// evidence is the facts of the subject, and what is done with them.
type evidence struct {
	parts   []evidencePart
	journal *journal.Journal
	fresh   []*authz.SealKeys // none has seen the legal file
	keys    func() (*authz.SealKeys, error)
}

// supplierCaller is a supplier, whose token was verified.
type supplierCaller meter.GLN

func (c supplierCaller) Supplier() meter.GLN     { return meter.GLN(c) }
func (supplierCaller) Employee() *authz.Employee { return nil }

// newEvidence takes the facts from the database and the settings.
func (b *bench) newEvidence(ctx context.Context, profile *meter.Profile, dir string) (_ *evidence, err error) {
	conf, err := config.Load[config.Gateway](filepath.Join(b.state, "gateway.yaml"))
	if err != nil {
		return nil, err
	}
	pinned, err := config.PublicKeys(conf.SealKeysFile)
	if err != nil {
		return nil, err
	}
	e := &evidence{keys: func() (*authz.SealKeys, error) { return authz.NewSealKeys(pinned...) }}
	seals, err := e.keys()
	if err != nil {
		return nil, err
	}
	var file, supplier, rawRecord, rawReceipt []byte
	for _, q := range []struct {
		query string
		arg   int64
		into  []any
	}{
		{`SELECT file FROM legal_file WHERE ean = $1 ORDER BY version DESC LIMIT 1`, b.ean.Int64(), []any{&file}},
		{`SELECT record FROM supplier WHERE gln = $1 ORDER BY version DESC LIMIT 1`, b.gln.Int64(), []any{&supplier}},
		{`SELECT record, receipt FROM access_log WHERE ean = $1 ORDER BY recorded_at DESC LIMIT 1`, b.ean.Int64(), []any{&rawRecord, &rawReceipt}},
	} {
		if err := b.db.QueryRowContext(ctx, q.query, q.arg).Scan(q.into...); err != nil {
			return nil, err
		}
	}
	legal, err := seals.LegalFile(file)
	if err != nil {
		return nil, err
	}
	record, err := audit.Parse(rawRecord, rawReceipt)
	if err != nil {
		return nil, err
	}
	receipt, err := envelope.ParseReceipt(rawReceipt)
	if err != nil {
		return nil, err
	}
	request := authz.Request{EAN: b.ean, Purpose: record.Purpose, Days: b.days}
	for _, f := range b.fields {
		request.Fields = append(request.Fields, f.Code)
	}
	now := time.Now()
	grant, withheld, err := authz.Decide(supplierCaller(b.gln), request, legal, profile, now)
	if err != nil || len(withheld) > 0 {
		return nil, errors.Join(errors.New("the request is not granted in this process"), err)
	}
	opened := make([]envelope.Opened, len(b.ids))
	for i, id := range b.ids {
		opened[i] = envelope.Opened{ID: id, Basis: meter.SupplyDaily, Given: id.Resolution}
	}
	if e.journal, err = journal.Open(journal.Config{Dir: dir}); err != nil {
		return nil, err
	}
	e.parts = []evidencePart{
		{"supplier record, verified before", 2, false, func() error { _, err := seals.Supplier(supplier); return err }},
		{partSeen, 2, false, func() error { _, err := seals.LegalFile(file); return err }},
		{"legal file, verified and parsed anew", 2, true, func() error {
			n := len(e.fresh) - 1
			keys := e.fresh[n]
			e.fresh = e.fresh[:n]
			_, err := keys.LegalFile(file)
			return err
		}},
		{"decision", 2, false, func() error {
			_, _, err := authz.Decide(supplierCaller(b.gln), request, legal, profile, now)
			return err
		}},
		{"every block held against the decision", 1, false, func() error {
			for _, id := range b.ids {
				if !grant.Covers(id.Field, id.Day) {
					return errors.New("a block is not covered")
				}
			}
			return nil
		}},
		{"receipt, with a digest of what was opened", 1, false, func() error {
			r := receipt
			r.Content = envelope.ContentDigest(opened)
			_, err := e.journal.Append(1, func(_ int, sequence uint64, previous [32]byte) []byte {
				r.BootID, r.Sequence, r.Previous = e.journal.BootID(), sequence, previous
				return r.Encode()
			})
			return err
		}},
		{"access record, encoded", 1, false, func() error {
			r := record
			r.Granted = audit.GrantedItems(grant)
			_, err := r.Encode()
			return err
		}},
	}
	return e, nil
}

func (e *evidence) close() error { return e.journal.Close() }

// measure runs each part for as long.
func (e *evidence) measure(d time.Duration) (map[string]run, error) {
	out := map[string]run{}
	for i := range e.parts {
		p := &e.parts[i]
		r, err := e.loop(p, d)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", p.Name, err)
		}
		out[p.Name] = r
	}
	return out, nil
}

// loop measures a part.
func (e *evidence) loop(p *evidencePart, d time.Duration) (run, error) {
	var took []time.Duration
	var cpu, wall time.Duration
	runtime.GC()
	for wall < d {
		if p.Fresh {
			e.fresh = e.fresh[:0]
			for range together {
				keys, err := e.keys()
				if err != nil {
					return run{}, err
				}
				e.fresh = append(e.fresh, keys)
			}
		}
		before, began := selfCPU(), time.Now()
		for range together {
			if err := p.work(); err != nil {
				return run{}, err
			}
		}
		t := time.Since(began)
		cpu += selfCPU() - before
		wall += t
		took = append(took, t/together)
	}
	r := newRun(took, wall, nil)
	r.Operations *= together
	r.CPU["part"] = ms(cpu) / float64(r.Operations)
	return r, nil
}

// sumEvidence is what the parts of a request cost together: with a legal file
// that both have verified before, or with one that is new to both.
func (r *report) sumEvidence(rd round, fresh bool, n int, f func(run) float64) float64 {
	t := f(rd[partCommit][n])
	for _, p := range r.Evidence {
		if p.Name == partSeen && fresh || p.Fresh && !fresh {
			continue
		}
		t += float64(p.Times) * f(rd[p.Name][1])
	}
	return t
}

func (r *report) printEvidence(w io.Writer) {
	fmt.Fprintf(w, "\nEvidence: what a request costs more because it can be proven (aim: a share of at most %g); parts measured each by itself\n", evidenceAim)
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "\tin a request\tus each\tCPU us each")
	us := func(name string, f func(run) float64) string {
		return r.spread(func(rd round) float64 { return 1000 * f(rd[name][1]) })
	}
	latency := func(x run) float64 { return x.MedianMS }
	for _, p := range r.Evidence {
		fmt.Fprintf(t, "%s\t%d\t%s\t%s\n", p.Name, p.Times, us(p.Name, latency), us(p.Name, run.total))
	}
	fmt.Fprintf(t, "%s\t1\t%s\t%s\n", partCommit, us(partCommit, latency), us(partCommit, run.total))
	t.Flush()

	fmt.Fprintln(w)
	t = tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "sum\tCPU ms\tshare of the request's\tms\tshare of the request's")
	for _, n := range clients {
		for _, fresh := range []bool{false, true} {
			name := fmt.Sprintf("legal file seen before, %d client(s)", n)
			if fresh {
				name = fmt.Sprintf("legal file new to both, %d client(s)", n)
			}
			fmt.Fprintf(t, "%s\t%s\t%s", name, r.spread(func(rd round) float64 { return r.sumEvidence(rd, fresh, n, run.total) }),
				r.spread(func(rd round) float64 {
					return r.sumEvidence(rd, fresh, n, run.total) / r.requestWith(rd, fresh, n, run.total)
				}))
			if n == 1 { // with more, each part would wait for the others
				fmt.Fprintf(t, "\t%s\t%s", r.spread(func(rd round) float64 { return r.sumEvidence(rd, fresh, n, latency) }),
					r.spread(func(rd round) float64 {
						return r.sumEvidence(rd, fresh, n, latency) / r.requestWith(rd, fresh, n, latency)
					}))
			}
			fmt.Fprintln(t)
		}
	}
	t.Flush()
	fmt.Fprintf(w, "The request beside it, %s: CPU %s ms, median %s ms; its floor without evidence but the commit: CPU %s ms, %s ms\n", kluisWarm,
		r.spread(func(rd round) float64 { return rd[kluisWarm][1].total() }), r.spread(func(rd round) float64 { return rd[kluisWarm][1].MedianMS }),
		r.spread(func(rd round) float64 { return sum(rd, floors(kluisWarm, tlsFloor), 1, run.total) }),
		r.spread(func(rd round) float64 { return sum(rd, floors(kluisWarm, tlsFloor), 1, latency) }))
	fmt.Fprintf(w, "Nobody waits for the auditor, whose CPU was %s ms a request with 1 client, %s ms with 8; its statements count as PostgreSQL's, and so as the request's\n",
		r.spread(func(rd round) float64 { return rd[kluisWarm][1].CPU[auditorCPU] }), r.spread(func(rd round) float64 { return rd[kluisWarm][8].CPU[auditorCPU] }))
}

// requestWith is the request as it was measured, with a legal file that both
// had seen; or as it would be with a new one.
func (r *report) requestWith(rd round, fresh bool, n int, f func(run) float64) float64 {
	return f(rd[kluisWarm][n]) + r.sumEvidence(rd, fresh, n, f) - r.sumEvidence(rd, false, n, f)
}
