package conformance

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"path"
	"strconv"
	"strings"
	"time"

	"kluis/meter"
)

// Target is an installation as suppliers know it.
type Target struct {
	Gateway string // base URLs
	Issuer  string
	// Clients are, by the supplier's name, HTTP clients that trust the
	// installation and present the supplier's certificate.
	Clients map[string]*http.Client
	// Seeded is the day on which the pack was seeded.
	Seeded meter.Day
	// Settled is from when on the pack is as its cases want it.
	Settled time.Time
	// Damaged says that the block of Point.Damaged was damaged.
	Damaged bool
}

// Outcome says how a case went.
type Outcome string

// The outcomes.
const (
	Pass    Outcome = "PASS"
	Fail    Outcome = "FAIL"
	Skipped Outcome = "SKIP" // see Case.Damage
)

// Result is how a case went, and if it failed, what differed.
type Result struct {
	Case        string   `json:"case"`
	Outcome     Outcome  `json:"outcome"`
	Interaction string   `json:"interactionId,omitempty"` // to quote to the grid operator
	Differences []string `json:"differences,omitempty"`
}

// maxAnswer bounds what is read of an answer: a year of quarter-hours is about
// a megabyte.
const maxAnswer = 16 << 20

// Run runs cases of the pack and tells of each. Its error says why the cases
// could not be run at all, or no further: no token, nobody there.
func Run(ctx context.Context, p *Pack, cases []Case, t Target, tell func(Result)) error {
	r := &runner{Target: t, pack: p, tokens: map[string]token{}, bodies: map[string]string{}}
	for _, c := range cases {
		result := Result{Case: c.Name, Outcome: Skipped}
		if !c.Damage || t.Damaged {
			var err error
			if result, err = r.run(ctx, c); err != nil {
				return fmt.Errorf("case %s: %w", c.Name, err)
			}
		}
		tell(result)
	}
	return nil
}

type runner struct {
	Target
	pack   *Pack
	tokens map[string]token
	bodies map[string]string // first answer of cases that must be answered alike
}

type token struct {
	text    string
	expires time.Time
}

func (r *runner) run(ctx context.Context, c Case) (Result, error) {
	supplier := r.pack.Suppliers[c.Supplier]
	req, err := r.request(ctx, c, supplier)
	if err != nil {
		return Result{}, err
	}
	result := Result{Case: c.Name, Outcome: Pass}
	var got Answer
	var interaction string
	var body []byte
	if c.Want.Manifest != nil {
		got, interaction, err = r.stream(ctx, c, supplier, req)
		if errors.Is(err, ErrUnreachable) {
			return Result{}, err
		}
	} else {
		status, header, content, failed := do(r.Clients[supplier.Name], req)
		if failed != nil {
			return Result{}, failed
		}
		body = content
		got, interaction, err = parseAnswer(status, header, body)
		got.heed(c, header)
	}
	result.Interaction = interaction
	if err != nil {
		result.Differences = []string{err.Error()}
	} else {
		result.Differences = differences(got, c.Want)
	}
	if c.Alike != "" && interaction != "" {
		same := strings.ReplaceAll(string(body), interaction, "")
		if first, ok := r.bodies[c.Alike]; ok && first != same {
			result.Differences = append(result.Differences, "the answer is not the same, to the byte, as to the other "+c.Alike)
		}
		r.bodies[c.Alike] = same
	}
	if len(result.Differences) > 0 {
		result.Outcome = Fail
	}
	return result, nil
}

// request is the case as an HTTP request.
func (r *runner) request(ctx context.Context, c Case, s Supplier) (*http.Request, error) {
	if r.Clients[s.Name] == nil {
		return nil, fmt.Errorf("there is no certificate of the test supplier %s", s.Name)
	}
	var body io.Reader
	if c.Request.Body != "" {
		body = strings.NewReader(c.Request.Body)
	}
	req, err := http.NewRequestWithContext(ctx, c.Request.Method, r.Gateway+c.Request.Target(), body)
	if err != nil {
		return nil, err
	}
	for name, value := range map[string]string{"Content-Type": c.Request.ContentType, "Idempotency-Key": c.Request.IdempotencyKey, "Accept": c.Request.Accept} {
		if value != "" {
			req.Header.Set(name, value)
		}
	}
	if c.Request.IfNoneMatch != "" {
		tag := c.Request.IfNoneMatch
		if tag == Current {
			if tag, err = r.tag(ctx, c.Request.Target(), s); err != nil {
				return nil, err
			}
		}
		req.Header.Set("If-None-Match", tag)
	}
	switch c.Request.IfMatch {
	case "":
	case Current:
		tag, err := r.tag(ctx, path.Dir(c.Request.Path), s)
		if err != nil {
			return nil, err
		}
		req.Header.Set("If-Match", tag)
	default:
		req.Header.Set("If-Match", c.Request.IfMatch)
	}
	switch c.Request.Token {
	case None:
		return req, nil
	case Garbage:
		req.Header.Set("Authorization", "Bearer not-a-token")
		return req, nil
	case Foreign:
		s = r.pack.other(s)
	}
	text, err := r.token(ctx, s)
	if err != nil {
		return nil, err
	}
	req.Header.Set("Authorization", "Bearer "+text)
	return req, nil
}

// tag gets what has an ETag, for it.
func (r *runner) tag(ctx context.Context, target string, s Supplier) (string, error) {
	text, err := r.token(ctx, s)
	if err != nil {
		return "", err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, r.Gateway+target, nil)
	if err != nil {
		return "", err
	}
	req.Header.Set("Authorization", "Bearer "+text)
	res, err := patient(r.Clients[s.Name], req)
	if err != nil {
		return "", fmt.Errorf("%w: %w", ErrUnreachable, err)
	}
	tag := res.Header.Get("ETag")
	if err := res.Body.Close(); err != nil || tag == "" {
		return "", fmt.Errorf("GET %s answers %d, and no ETag: %w", target, res.StatusCode, errors.Join(err, errNoTag))
	}
	return tag, nil
}

// patience is how often a request is made that its supplier's quota does not let
// through: others may be trying the same test suppliers.
const patience = 20

// patient makes a request, and waits as long as a 429 says before it makes it
// again.
func patient(c *http.Client, req *http.Request) (*http.Response, error) {
	for n := 1; ; n++ {
		res, err := c.Do(req)
		if err != nil || res.StatusCode != http.StatusTooManyRequests || n == patience {
			return res, err
		}
		seconds, err := strconv.Atoi(res.Header.Get("Retry-After"))
		if err != nil || seconds < 1 || seconds > 60 {
			return res, nil
		}
		if err := res.Body.Close(); err != nil {
			return nil, err
		}
		select {
		case <-req.Context().Done():
			return nil, req.Context().Err()
		case <-time.After(time.Duration(seconds) * time.Second):
		}
		if req.GetBody != nil {
			if req.Body, err = req.GetBody(); err != nil {
				return nil, err
			}
		}
	}
}

var errNoTag = errors.New("there is nothing to name the state with")

// token is an access token of a supplier (RFC 6749, 4.4; RFC 8705, 2.1).
func (r *runner) token(ctx context.Context, s Supplier) (string, error) {
	if t, ok := r.tokens[s.Name]; ok && time.Until(t.expires) > 30*time.Second {
		return t.text, nil
	}
	form := url.Values{"grant_type": {"client_credentials"}, "client_id": {s.GLN.String()}}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, r.Issuer+"/oauth2/token", strings.NewReader(form.Encode()))
	if err != nil {
		return "", err
	}
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	status, _, body, err := do(r.Clients[s.Name], req)
	if err != nil {
		return "", err
	}
	var answer struct {
		AccessToken string `json:"access_token"`
		ExpiresIn   int    `json:"expires_in"`
		Error       string `json:"error"`
		Description string `json:"error_description"`
	}
	if err := json.Unmarshal(body, &answer); err != nil || status != http.StatusOK || answer.AccessToken == "" {
		return "", fmt.Errorf("no access token for the test supplier %s: the issuer answers %d %s: %s", s.Name, status, answer.Error, answer.Description)
	}
	r.tokens[s.Name] = token{answer.AccessToken, time.Now().Add(time.Duration(answer.ExpiresIn) * time.Second)}
	return answer.AccessToken, nil
}

// ErrUnreachable says that nobody answered.
var ErrUnreachable = errors.New("the installation does not answer")

func do(c *http.Client, req *http.Request) (status int, header http.Header, body []byte, err error) {
	res, err := patient(c, req)
	if err != nil {
		return 0, nil, nil, fmt.Errorf("%w: %w", ErrUnreachable, err)
	}
	body, err = io.ReadAll(io.LimitReader(res.Body, maxAnswer))
	if err = errors.Join(err, res.Body.Close()); err != nil {
		return 0, nil, nil, fmt.Errorf("%w: %w", ErrUnreachable, err)
	}
	return res.StatusCode, res.Header, body, nil
}

// mediaOf is the media type of an answer, without its parameters.
func mediaOf(h http.Header) string {
	media, _, _ := strings.Cut(h.Get("Content-Type"), ";")
	return media
}

// heed notes what of an answer's header the case is about.
func (a *Answer) heed(c Case, h http.Header) {
	if c.Want.Media != "" {
		a.Media = mediaOf(h)
	}
	for _, name := range c.Want.Headers {
		if h.Get(name) != "" {
			a.Headers = append(a.Headers, name)
		}
	}
}

// parseAnswer reads any answer of the API. What the contract adds in time is
// passed over.
func parseAnswer(status int, header http.Header, body []byte) (a Answer, interaction string, err error) {
	a.Status = status
	switch media := mediaOf(header); {
	case status == http.StatusNotModified:
		if len(body) > 0 {
			err = errors.New("304 with a body")
		}
		return a, header.Get("X-Interaction-Id"), err
	case status == http.StatusOK && media == mediaTable:
		a.Points, err = parseTable(body)
		return a, header.Get("X-Interaction-Id"), err
	case status == http.StatusOK && media == mediaFeed:
		a.Points, err = parseFeed(body)
		return a, header.Get("X-Interaction-Id"), err
	}
	var kind struct {
		InteractionID  string
		Series         json.RawMessage
		Granted        json.RawMessage
		Done           *int
		Cursor         *string
		MeteringPoints json.RawMessage
		Consents       []Consent
		Type           string
		Errors         []struct{ Pointer string }
		Links          struct{ Next *string }
	}
	if err := json.Unmarshal(body, &kind); err != nil {
		return a, "", fmt.Errorf("the answer, %d, is no JSON as the contract has it: %w", status, err)
	}
	switch {
	case status != http.StatusOK:
		a.Problem = strings.TrimPrefix(kind.Type, "urn:kluis:problem:")
		for _, e := range kind.Errors {
			a.Pointers = append(a.Pointers, e.Pointer)
		}
	case kind.Series != nil:
		a.Readings = &Readings{}
		err = json.Unmarshal(body, a.Readings)
	case kind.Granted != nil:
		a.Access = &Access{}
		err = json.Unmarshal(body, a.Access)
	case kind.Done != nil:
		var page []answeredPoint
		err = json.Unmarshal(kind.MeteringPoints, &page)
		for _, p := range page {
			a.Points = append(a.Points, p.answered())
		}
		if kind.Cursor != nil {
			err = errors.New("the answer has a further page, and none is wanted")
		}
	case kind.MeteringPoints != nil:
		err = json.Unmarshal(kind.MeteringPoints, &a.List)
	default:
		a.Consents = kind.Consents
	}
	if err == nil && kind.Links.Next != nil {
		err = errors.New("the answer has a further page, and none is wanted")
	}
	return a, kind.InteractionID, err
}

// Ask learns from an installation what the pack must know of it, and which day
// it is there, and makes the pack that was seeded. It waits for the seconds that
// a pack just seeded needs to settle.
func Ask(ctx context.Context, t Target) (*Pack, error) {
	select {
	case <-time.After(time.Until(t.Settled)):
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	all := Suppliers()
	r := &runner{Target: t, pack: &Pack{Suppliers: all}, tokens: map[string]token{}}
	c := Case{Supplier: north, Request: Request{Method: http.MethodGet, Path: "/v1/status", Token: Own}}
	req, err := r.request(ctx, c, all[north])
	if err != nil {
		return nil, err
	}
	status, _, body, err := do(t.Clients[all[north].Name], req)
	if err != nil {
		return nil, err
	}
	var says struct {
		At      time.Time
		Profile struct {
			Country, TimeZone string
			RetentionMonths   int
		}
	}
	if status == http.StatusOK {
		err = json.NewDecoder(bytes.NewReader(body)).Decode(&says)
	}
	if err != nil || status != http.StatusOK {
		return nil, fmt.Errorf("GET /v1/status answers %d: %w", status, errors.Join(err, errStatus))
	}
	if says.Profile.Country != "NL" {
		return nil, fmt.Errorf("the pack is of the Dutch market profile, and the installation is of %s", says.Profile.Country)
	}
	loc, err := time.LoadLocation(says.Profile.TimeZone)
	if err != nil || says.Profile.RetentionMonths < 1 {
		return nil, fmt.Errorf("GET /v1/status: %w", errors.Join(err, errStatus))
	}
	y, m, d := says.At.In(loc).Date()
	return New(Market{loc, says.Profile.RetentionMonths}, t.Seeded, dayOn(y, m, d))
}

var errStatus = errors.New("the installation does not say how it fares")
