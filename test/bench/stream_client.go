package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"runtime"
	"sync"
	"time"

	api "kluis/openapi/client"

	"kluis/meter"
)

// streamQuery is what is asked, and what must come of it.
type streamQuery struct {
	name string
	body map[string]any
	want map[int]bool // numbers of the metering points
	// values that each is expected to have.
	values int
}

func (s *stream) fieldNames(codes []meter.FieldCode) (names []string) {
	for _, f := range codes {
		field, _ := s.profile.FieldByCode(f)
		names = append(names, field.Name)
	}
	return names
}

// statement is the monthly statement of the whole portfolio: the first and the
// last read of each register.
func (s *stream) statement() streamQuery {
	q := streamQuery{name: "monthly statement", want: map[int]bool{}, values: 2 * len(registerFields), body: map[string]any{
		"from": s.days.From.String(), "to": s.days.To.String(), "purpose": "BILLING", "resolution": "P1M", "fields": s.fieldNames(registerFields),
	}}
	for n := range s.filled {
		q.want[n] = true
	}
	return q
}

// detail is a month of quarter-hours of those that consented.
func (s *stream) detail() streamQuery {
	q := streamQuery{name: "quarter-hours", want: map[int]bool{}, body: map[string]any{
		"from": s.days.From.String(), "to": s.days.To.String(), "purpose": "ENERGY_MANAGEMENT", "fields": s.fieldNames(intervalFields),
	}}
	for day := s.days.From; day < s.days.To; day++ {
		q.values += len(intervalFields) * meter.Slots(day, meter.PT15M, s.profile.Location())
	}
	var list []string
	for n := 0; n < s.filled; n += streamDetail {
		ean, err := streamEAN(n)
		if err != nil {
			panic(err) // it was made before
		}
		list, q.want[n] = append(list, ean.String()), true
	}
	q.body["meteringPoints"] = list
	return q
}

// reader takes a stream in as a supplier does that keeps the lines: it looks at
// what it must, and at nothing twice.
type reader struct {
	want     map[int]bool
	chain    *api.Chain
	query    [32]byte
	sequence int
	cursor   []byte
	bytes    int64
	first    time.Duration // until the first metering point
	parts    int
	manifest string
}

// streamLine is what a reader needs of the lines that are few.
type streamLine struct {
	Type     string `json:"type"`
	Query    string `json:"query"`
	Complete bool   `json:"complete"`
	Manifest string `json:"manifest"`
	Cursor   string `json:"cursor"`
	Problem  *struct {
		Type   string `json:"type"`
		Detail string `json:"detail"`
	} `json:"problem"`
}

// part reads one answer, and says whether it was the last.
func (r *reader) part(body io.Reader, began time.Time) (last bool, err error) {
	lines := bufio.NewReaderSize(body, 1<<20)
	for {
		line, err := lines.ReadSlice('\n')
		if err != nil {
			return false, fmt.Errorf("cut off: %w", err)
		}
		r.bytes += int64(len(line))
		switch {
		case bytes.HasPrefix(line, []byte(`{"type":"point",`)):
			if r.first == 0 {
				r.first = time.Since(began)
			}
			if err := r.point(line); err != nil {
				return false, err
			}
		case bytes.HasPrefix(line, []byte(`{"type":"progress",`)):
			if _, after, ok := bytes.Cut(line, []byte(`"cursor":"`)); ok {
				r.cursor = append(r.cursor[:0], after[:bytes.IndexByte(after, '"')]...)
			}
		default:
			var l streamLine
			if err := json.Unmarshal(line, &l); err != nil {
				return false, err
			}
			if done, err := r.other(&l); done || err != nil {
				return l.Complete, err
			}
		}
	}
}

// point takes the line of a metering point, once.
func (r *reader) point(line []byte) error {
	var sequence int
	head, rest, _ := bytes.Cut(line, []byte(`,"ean":"`))
	if _, err := fmt.Sscanf(string(head), `{"type":"point","sequence":%d`, &sequence); err != nil || sequence != r.sequence+1 || len(rest) < 19 {
		return fmt.Errorf("after metering point %d came %q: %w", r.sequence, head, err)
	}
	if bytes.Contains(rest[:min(len(rest), 40)], []byte(`"problem"`)) {
		return fmt.Errorf("a problem: %s", rest)
	}
	n, ok := streamNumber(string(rest[:18]))
	if !ok || !r.want[n] {
		return fmt.Errorf("metering point %s, which was not asked for, or came twice", rest[:18])
	}
	delete(r.want, n)
	r.sequence = sequence
	r.chain.Add(line)
	return nil
}

// other takes the first or last line of a part.
func (r *reader) other(l *streamLine) (done bool, err error) {
	switch {
	case l.Type == "begin":
		b, err := base64.RawURLEncoding.DecodeString(l.Query)
		if err != nil || len(b) != 32 || r.chain != nil && [32]byte(b) != r.query {
			return false, fmt.Errorf("a stream of %q", l.Query)
		}
		if r.query = [32]byte(b); r.chain == nil {
			r.chain = api.NewChain(r.query)
		}
		return false, nil
	case l.Type == "end" && l.Complete:
		r.manifest = l.Manifest
		return true, nil
	case l.Type == "end" && l.Problem != nil && l.Problem.Type == "urn:kluis:problem:unauthenticated":
		r.cursor = []byte(l.Cursor)
		return true, nil // with a new token
	case l.Type == "end" && l.Problem != nil:
		return false, fmt.Errorf("it ended with %s: %s", l.Problem.Type, l.Problem.Detail)
	}
	return false, fmt.Errorf("a line of type %q", l.Type)
}

// read reads the stream to its end, however many parts it takes.
func (s *stream) read(ctx context.Context, q streamQuery) (*reader, error) {
	r := &reader{want: q.want}
	began := time.Now()
	for range 100 {
		s.client.tokenEnd = time.Time{} // each part has a token of its own
		if err := s.client.authorise(ctx); err != nil {
			return nil, err
		}
		if len(r.cursor) > 0 {
			q.body["cursor"] = string(r.cursor)
		}
		last, err := s.ask(ctx, q, r, began)
		if err != nil {
			return nil, err
		}
		if r.parts++; last {
			return r, s.check(ctx, q, r)
		}
	}
	return nil, errors.New("a hundred parts, and no end")
}

func (s *stream) ask(ctx context.Context, q streamQuery, r *reader, began time.Time) (last bool, err error) {
	body, err := json.Marshal(q.body)
	if err != nil {
		return false, err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, s.ready.GatewayURL+"/v1/readings/query", bytes.NewReader(body))
	if err != nil {
		return false, err
	}
	req.Header.Set("Authorization", "Bearer "+s.client.token)
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Accept", "application/x-ndjson")
	req.Header.Set("Accept-Encoding", "identity")
	res, err := s.client.http.Do(req)
	if err != nil {
		return false, err
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		b, _ := io.ReadAll(io.LimitReader(res.Body, 2000))
		return false, fmt.Errorf("%s\n%s", res.Status, b)
	}
	return r.part(res.Body, began)
}

// check holds the manifest against what came: every metering point once, whole.
func (s *stream) check(ctx context.Context, q streamQuery, r *reader) error {
	if len(r.want) > 0 {
		return fmt.Errorf("%d metering points did not come", len(r.want))
	}
	var keys api.JwkSet
	if err := s.client.get(ctx, s.ready.GatewayURL+"/v1/manifest-keys", func(res *http.Response) error { return json.NewDecoder(res.Body).Decode(&keys) }); err != nil {
		return err
	}
	m, err := api.VerifyManifest(r.manifest, keys)
	if err != nil {
		return err
	}
	values := uint64(q.values) * uint64(r.sequence)
	if m.Supplier != s.gln.String() || m.Query != r.query || m.Digest != r.chain.Digest() || int(m.Points) != r.sequence || m.Given != m.Points ||
		m.LeftOut != 0 || int(m.Parts) != r.parts || m.Expected != values || m.Delivered != values {
		return fmt.Errorf("the manifest says %+v of %d metering points of %d values in %d parts", m, r.sequence, q.values, r.parts)
	}
	return nil
}

// streamRun is one stream, measured.
type streamRun struct {
	Points  int                `json:"metering_points"`
	Seconds float64            `json:"seconds"`
	First   float64            `json:"first_point_seconds"`
	Parts   int                `json:"parts"`
	Bytes   int64              `json:"bytes"`
	CPU     map[string]float64 `json:"cpu_us"` // per metering point, by process
	// Memory of all processes of Kluis together, with what two of them share
	// counted once: all that is resident, and without the pages of programs and
	// libraries, which the kernel takes back when it needs them; and what is
	// resident of each process by itself.
	PeakMB float64            `json:"peak_mb"`
	OwnMB  float64            `json:"peak_own_mb"`
	ByName map[string]float64 `json:"peak_resident_mb"`
	// QuarterMB is the peak of OwnMB in each quarter of the run.
	QuarterMB  [4]float64 `json:"peak_own_mb_by_quarter"`
	PostgresMB float64    `json:"postgresql_peak_mb"`
	Load       string     `json:"load_average"` // before
}

func (r *streamRun) rate() float64 { return float64(r.Points) / r.Seconds }

// total is the CPU of a metering point but for the client's and the auditor's,
// for whom no stream waits.
func (r *streamRun) total() (us float64) {
	for name, t := range r.CPU {
		if name != clientCPU && name != auditorCPU {
			us += t
		}
	}
	return us
}

// usage is the CPU of all processes so far.
func (s *stream) usage() (map[string]time.Duration, error) {
	u := map[string]time.Duration{clientCPU: selfCPU()}
	var err error
	for name, pid := range s.kluis {
		if u[name], err = cpuOf(pid); err != nil {
			return nil, err
		}
	}
	u["postgresql"], err = cpuOfTree(s.postgres)
	return u, err
}

func (s *stream) measure(ctx context.Context, q streamQuery) (run streamRun, err error) {
	s.say("%s of %d metering points", q.name, len(q.want))
	run = streamRun{Points: len(q.want), Load: loadAverage(), CPU: map[string]float64{}, ByName: map[string]float64{}}
	runtime.GC()
	before, err := s.usage()
	if err != nil {
		return run, err
	}
	watch := s.watch()
	began := time.Now()
	r, err := s.read(ctx, q)
	run.Seconds = time.Since(began).Seconds()
	seen := watch()
	if err != nil {
		return run, err
	}
	after, err := s.usage()
	if err != nil {
		return run, err
	}
	for name := range after {
		run.CPU[name] = float64((after[name] - before[name]).Microseconds()) / float64(run.Points)
	}
	run.First, run.Parts, run.Bytes = r.first.Seconds(), r.parts, r.bytes
	for i, m := range seen {
		run.PeakMB = max(run.PeakMB, m.together)
		run.OwnMB = max(run.OwnMB, m.own)
		run.QuarterMB[i*4/len(seen)] = max(run.QuarterMB[i*4/len(seen)], m.own)
		run.PostgresMB = max(run.PostgresMB, m.postgres)
		for name, mb := range m.resident {
			run.ByName[name] = max(run.ByName[name], mb)
		}
	}
	s.say("  %.0f a second; %.0f MB, %.0f with programs", run.rate(), run.OwnMB, run.PeakMB)
	return run, nil
}

// seenMemory is memory at a moment, in MB.
type seenMemory struct {
	together float64 // what is shared counted once
	own      float64 // of it in no file
	resident map[string]float64
	postgres float64
}

// proportional is the memory of a process, of what it shares its share (proc(5)).
func proportional(pid int) (all, own float64, err error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
	if err != nil {
		return 0, 0, err
	}
	for name, mb := range map[string]*float64{"\nPss:": &all, "\nPss_Anon:": &own} {
		_, after, _ := bytes.Cut(b, []byte(name))
		var kb int64
		if _, err := fmt.Sscan(string(after), &kb); err != nil {
			return 0, 0, fmt.Errorf("/proc/%d/smaps_rollup cannot be read: %w", pid, err)
		}
		*mb = float64(kb<<10) / 1e6
	}
	return all, own, nil
}

const watchEvery = 250 * time.Millisecond

// watch looks at the memory of all processes until it is told to stop.
func (s *stream) watch() (stop func() []seenMemory) {
	var seen []seenMemory
	var wg sync.WaitGroup
	done := make(chan struct{})
	look := func() {
		m := seenMemory{resident: map[string]float64{}}
		for name, pid := range s.kluis {
			if is, err := memoryOf(pid); err == nil {
				m.resident[name] = float64(is.Resident) / 1e6
			}
			if all, own, err := proportional(pid); err == nil {
				m.together, m.own = m.together+all, m.own+own
			}
		}
		if b, err := memoryOfTree(s.postgres); err == nil {
			m.postgres = float64(b) / 1e6
		}
		seen = append(seen, m)
	}
	wg.Go(func() {
		for {
			look()
			select {
			case <-done:
				return
			case <-time.After(watchEvery):
			}
		}
	})
	return func() []seenMemory {
		close(done)
		wg.Wait()
		look()
		return seen
	}
}
