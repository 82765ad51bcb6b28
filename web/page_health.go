package web

import (
	"context"
	"net/http"
	"strings"
	"time"

	"kluis/openapi/client"
)

// healthRoutes are those of templates/health.html.
func (p *Portal) healthRoutes() []route {
	return []route{
		{"GET", "/health", employees, p.healthPage, false},
		{"GET", "/health/now", employees, p.healthNow, true}, // a part, asked again and again
	}
}

// Ages from which on something is late. A checkpoint is signed every few seconds,
// and readings of a day arrive during the next one.
const (
	checkpointLate = 5 * time.Minute
	ingestLate     = 36 * time.Hour
)

// healthData is what templates/health.html shows: each part with its state, as
// badge kind (ok, warn, bad, off), and the text that says what that means here.
type healthData struct {
	At      time.Time
	Worst   string // kind
	Summary string // key of a text
	Parts   []healthPart
	Servers []healthServer
	Gateway client.GatewayStatus
	Problem *Problem   // instead of all that: the API did not answer
	Seen    []seenPart // what the portal sees by itself then
}

type healthPart struct {
	Name string // texts health.NAME, and health.NAME.KIND for what it means
	Kind string
	At   *time.Time
	Days *client.IngestStatus
	Size int
}

// seenPart is a part as the portal sees it, which asks it without a token.
type seenPart struct {
	Name string // texts health.seen.NAME, and health.seen.NAME.KIND
	Kind string
}

type healthServer struct {
	client.CryptoserverStatus
	Up     bool
	Tokens []healthToken
}

// Opened is how many openings the server counts since its start.
func (s healthServer) Opened() int { return *s.Receipts }

type healthToken struct {
	Role, Label string
	Kind        string // of the badge
	State       string // key of a text
}

func (p *Portal) healthPage(w http.ResponseWriter, r *http.Request) error {
	d := p.health(r)
	if d.Problem != nil && d.Problem.Name == errSignInAgain.name {
		return visitOf(r).cause
	}
	return p.page(w, r, "health", d)
}

func (p *Portal) healthNow(w http.ResponseWriter, r *http.Request) error {
	return p.part(w, r, "health", "now", p.health(r))
}

// health never fails: that the API is away is what the page is for.
func (p *Portal) health(r *http.Request) healthData {
	res, err := p.API(r, ToOversee("health")).GetOperationsWithResponse(r.Context())
	if err == nil {
		var o *client.Operations
		if o, err = Given(res.JSON200, res.HTTPResponse, res.Body); err == nil {
			return healthOf(o, p.now())
		}
	}
	visitOf(r).cause = err
	pr := problemOf(err)
	return healthData{At: p.now(), Worst: "bad", Summary: "health.all.bad", Problem: &pr, Seen: p.seen(r)}
}

// seen asks each part that the portal reaches how it fares, as anybody may.
func (p *Portal) seen(r *http.Request) []seenPart {
	var gateway, issuer, provider string
	g := p.group(r)
	ask := func(into *string, c *http.Client, url string) {
		*into = "bad"
		g.Go(func() error { *into = probe(r.Context(), c, url); return nil })
	}
	ask(&gateway, p.errands.http, p.config.Gateway+"/readyz")
	ask(&issuer, p.errands.http, p.config.Issuer+"/readyz")
	ask(&provider, p.signIn.http, strings.TrimSuffix(p.signIn.Issuer, "/")+"/.well-known/openid-configuration")
	if err := g.Wait(); err != nil {
		p.log.Error("what the portal sees of the others", "error", err)
	}
	return seenOf(gateway, issuer, provider)
}

// seenOf says what the answers mean. Who asks has a session, which the database
// gave; so what the gateway or the issuer is not ready for is not likely to be that.
func seenOf(gateway, issuer, provider string) []seenPart {
	crypto := "off"
	switch {
	case gateway == "ok" || issuer == "ok":
		crypto = "ok"
	case gateway == "warn" || issuer == "warn":
		crypto = "bad"
	}
	return []seenPart{{"database", "ok"}, {"gateway", gateway}, {"issuer", issuer}, {"cryptoservers", crypto}, {"provider", provider}}
}

// probeTimeout is a little more than parts give themselves to look at their own.
const probeTimeout = 4 * time.Second

// probe is how a part fares by its own word: ok, warn where it answers that it
// cannot work, off where that is not said, bad where it does not answer.
func probe(ctx context.Context, c *http.Client, url string) string {
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return "off"
	}
	res, err := c.Do(req)
	if err != nil {
		return "bad"
	}
	defer res.Body.Close()
	switch {
	case res.StatusCode == http.StatusOK:
		return "ok"
	case res.StatusCode >= http.StatusInternalServerError:
		return "warn"
	}
	return "off"
}

// healthOf judges what the API says of its parts.
func healthOf(o *client.Operations, now time.Time) healthData {
	d := healthData{At: o.At, Gateway: o.Gateway}

	up := 0
	for _, c := range o.Cryptoservers {
		s := healthServer{CryptoserverStatus: c, Up: c.Status == client.PartUp}
		if s.Up {
			up++
		}
		if c.Tokens != nil {
			for _, t := range *c.Tokens {
				s.Tokens = append(s.Tokens, tokenOf(t))
			}
		}
		d.Servers = append(d.Servers, s)
	}
	crypto := healthPart{Name: "cryptoservers", Kind: "ok", Size: up}
	switch {
	case up == 0:
		crypto.Kind = "bad"
	case up < len(o.Cryptoservers):
		crypto.Kind = "warn"
	}

	database := healthPart{Name: "database", Kind: "ok"}
	if o.Database.Status != client.PartUp {
		database.Kind = "bad"
	}

	ingest := healthPart{Name: "ingest", Kind: "off"}
	if o.Ingest != nil {
		ingest.Days, ingest.At = o.Ingest, o.Ingest.LastStoredAt
		ingest.Kind = lateness(o.Ingest.LastStoredAt, now, ingestLate)
	}

	log := healthPart{Name: "log", Kind: "off"}
	if o.Checkpoint != nil {
		log.At, log.Size = &o.Checkpoint.SignedAt, o.Checkpoint.Size
		log.Kind = lateness(log.At, now, checkpointLate)
	}

	d.Parts = []healthPart{database, crypto, ingest, log}
	d.Worst = "ok"
	for _, part := range d.Parts {
		switch {
		case part.Kind == "bad":
			d.Worst = "bad"
		case part.Kind != "ok" && d.Worst == "ok":
			d.Worst = "warn"
		}
	}
	d.Summary = "health.all." + d.Worst
	return d
}

// lateness is a part's kind by when it was last heard of.
func lateness(at *time.Time, now time.Time, late time.Duration) string {
	switch {
	case at == nil:
		return "off"
	case now.Sub(*at) > late:
		return "warn"
	}
	return "ok"
}

// tokenOf says how an HSM token fares; what a server did not say is not guessed.
func tokenOf(t client.HsmToken) healthToken {
	out := healthToken{Role: t.Role, Label: t.Label, Kind: "off", State: "health.token.unknown"}
	switch t.State {
	case "up":
		out.Kind, out.State = "ok", "health.token.up"
	case "suspect", "probing":
		out.Kind, out.State = "warn", "health.token.suspect"
	case "down":
		out.Kind, out.State = "bad", "health.token.down"
	}
	return out
}
