package kluis

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"kluis/openapi/client"
)

// gateway is a gateway and an issuer that say what a test has them say: what a
// true one would never say, and breaks that come when they should. The true one
// is in test/e2e.
type gateway struct {
	*httptest.Server
	key    *ecdsa.PrivateKey
	points int // metering points there are
	life   int // of tokens, seconds

	mu     sync.Mutex
	parts  []func(http.ResponseWriter, *part) // one for each request for a stream; the last for all others
	asked  []client.ReadingsQuery
	tokens int
	got    []string // tokens sent with streams
}

// part is one answer with a stream.
type part struct {
	g     *gateway
	from  int // metering points that were answered before
	id    string
	chain *client.Chain
	w     http.ResponseWriter
}

var queryDigest = sha256.Sum256([]byte("a query"))

func (g *gateway) ean(n int) string { return fmt.Sprintf("%018d", 871687100000000000+n) }

func newGateway(t *testing.T, points int, parts ...func(http.ResponseWriter, *part)) *gateway {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	g := &gateway{key: key, points: points, life: 300, parts: parts}
	mux := http.NewServeMux()
	mux.HandleFunc("POST /oauth2/token", func(w http.ResponseWriter, r *http.Request) {
		g.mu.Lock()
		defer g.mu.Unlock()
		g.tokens++
		w.Header().Set("Content-Type", "application/json")
		fmt.Fprintf(w, `{"access_token":"token-%d","token_type":"Bearer","expires_in":%d}`, g.tokens, g.life)
	})
	mux.HandleFunc("GET /v1/manifest-keys", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(g.keys())
	})
	mux.HandleFunc("POST /v1/readings/query", func(w http.ResponseWriter, r *http.Request) {
		var q client.ReadingsQuery
		if err := json.NewDecoder(r.Body).Decode(&q); err != nil {
			t.Error(err)
		}
		p := &part{g: g, w: w, chain: client.NewChain(queryDigest), id: fmt.Sprintf("00000000-0000-7000-8000-%012d", len(g.asked)+1)}
		if q.Cursor != nil {
			if _, err := fmt.Sscanf(*q.Cursor, "after-%d", &p.from); err != nil {
				t.Error(err)
			}
		}
		for n := range p.from {
			p.chain.Add([]byte(g.point(n + 1)))
		}
		g.mu.Lock()
		g.asked, g.got = append(g.asked, q), append(g.got, r.Header.Get("Authorization"))
		do := g.parts[min(len(g.asked), len(g.parts))-1]
		g.mu.Unlock()
		do(w, p)
	})
	g.Server = httptest.NewUnstartedServer(mux)
	g.Config.ErrorLog = log.New(io.Discard, "", 0)
	g.StartTLS()
	t.Cleanup(g.Close)
	return g
}

func (g *gateway) keys() client.JwkSet {
	point, _ := g.key.PublicKey.Bytes()
	enc := base64.RawURLEncoding.EncodeToString
	k := client.Jwk{Kty: "EC", Crv: "P-256", X: enc(point[1:33]), Y: enc(point[33:]), Use: "sig", Alg: "ES256"}
	sum := sha256.Sum256([]byte(fmt.Sprintf(`{"crv":"P-256","kty":"EC","x":"%s","y":"%s"}`, k.X, k.Y)))
	k.Kid = enc(sum[:])
	return client.JwkSet{Keys: []client.Jwk{k}}
}

// manifest signs the claims of a whole stream, changed by change.
func (p *part) manifest(change func(map[string]any)) string {
	digest := p.chain.Digest()
	enc := base64.RawURLEncoding.EncodeToString
	claims := map[string]any{"iss": "cs", "sub": "8712423000018", "iat": 1, "jti": p.id, "query": enc(queryDigest[:]), "format": "ndjson", "points": p.g.points,
		"given": 0, "partly": 0, "withheld": p.g.points, "failed": 0, "left_out": 0, "expected": 0, "delivered": 0, "parts": 1, "digest": enc(digest[:])}
	if change != nil {
		change(claims)
	}
	var b strings.Builder
	for _, name := range []string{"iss", "sub", "iat", "jti", "query", "format", "points", "given", "partly", "withheld", "failed", "left_out", "expected", "delivered", "parts", "digest"} {
		v, _ := json.Marshal(claims[name])
		fmt.Fprintf(&b, `,"%s":%s`, name, v)
	}
	signed := enc([]byte(`{"alg":"ES256","kid":"`+p.g.keys().Keys[0].Kid+`","typ":"kluis-manifest+jwt"}`)) + "." + enc([]byte("{"+b.String()[1:]+"}"))
	sum := sha256.Sum256([]byte(signed))
	r, s, _ := ecdsa.Sign(rand.Reader, p.g.key, sum[:])
	return signed + "." + enc(append(r.FillBytes(make([]byte, 32)), s.FillBytes(make([]byte, 32))...))
}

func (p *part) say(format string, args ...any) {
	fmt.Fprintf(p.w, format+"\n", args...)
	p.w.(http.Flusher).Flush()
}

func (p *part) begin() {
	p.w.Header().Set("Content-Type", "application/x-ndjson")
	p.say(`{"type":"begin","interactionId":"%s","query":"%s","done":%d,"total":%d}`, p.id, base64.RawURLEncoding.EncodeToString(queryDigest[:]), p.from, p.g.points)
}

func (g *gateway) point(n int) string {
	return fmt.Sprintf(`{"type":"point","sequence":%d,"ean":"%s","series":[],"withheld":[]}`+"\n", n, g.ean(n))
}

func (p *part) progress(n int) {
	p.say(`{"type":"progress","sequence":%d,"done":%d,"total":%d,"cursor":"after-%d"}`, n, n, p.g.points, n)
}

// to answers metering points up to n.
func (p *part) to(n int) {
	for i := p.from + 1; i <= n; i++ {
		line := p.g.point(i)
		p.chain.Add([]byte(line))
		p.say("%s", strings.TrimSuffix(line, "\n"))
		p.progress(i)
	}
}

func (p *part) end(manifest string) {
	p.say(`{"type":"end","complete":true,"sequence":%d,"done":%d,"manifest":"%s"}`, p.g.points, p.g.points, manifest)
}

// whole answers all that is left.
func whole(_ http.ResponseWriter, p *part) {
	p.begin()
	p.to(p.g.points)
	p.end(p.manifest(nil))
}

// cut answers up to metering point n, and is cut off in the middle of a line.
func cut(n int) func(http.ResponseWriter, *part) {
	return func(w http.ResponseWriter, p *part) {
		p.begin()
		p.to(n)
		fmt.Fprint(w, p.g.point(n + 1)[:20])
		w.(http.Flusher).Flush()
		panic(http.ErrAbortHandler)
	}
}

func problem(status int, slug string, header ...string) func(http.ResponseWriter, *part) {
	return func(w http.ResponseWriter, _ *part) {
		w.Header().Set("Content-Type", "application/problem+json")
		for i := 0; i < len(header); i += 2 {
			w.Header().Set(header[i], header[i+1])
		}
		w.WriteHeader(status)
		fmt.Fprintf(w, `{"type":"urn:kluis:problem:%s","title":"T","status":%d,"interactionId":"00000000-0000-7000-8000-000000000000"}`, slug, status)
	}
}

// stops answers up to n, and then says why no more.
func stops(n int, slug string, status int) func(http.ResponseWriter, *part) {
	return func(_ http.ResponseWriter, p *part) {
		p.begin()
		p.to(n)
		p.say(`{"type":"end","complete":false,"sequence":%d,"done":%d,"cursor":"after-%d","problem":{"type":"urn:kluis:problem:%s","title":"T","status":%d,"interactionId":"%s","retryAfter":7}}`, n, n, n, slug, status, p.id)
	}
}

// client is one of the gateway's that does not truly wait; waits is how long it
// would have.
func (g *gateway) client(t *testing.T, change func(*Config)) (k *Client, waits *[]time.Duration) {
	t.Helper()
	pool := x509.NewCertPool()
	pool.AddCert(g.Certificate())
	conf := Config{Gateway: g.URL, Issuer: g.URL, ClientID: "8712423000018", TLS: &tls.Config{RootCAs: pool}}
	if change != nil {
		change(&conf)
	}
	k, err := Open(conf)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(k.Close)
	waits = &[]time.Duration{}
	k.sleep = func(ctx context.Context, d time.Duration) error {
		*waits = append(*waits, d)
		return ctx.Err()
	}
	return k, waits
}

func (g *gateway) query(t *testing.T, k *Client, checkpoint string) (eans []string, r *Result, err error) {
	t.Helper()
	r, err = k.Query(t.Context(), client.ReadingsQuery{From: Date(2026, 3, 1), To: Date(2026, 4, 1), Purpose: client.PurposeBILLING}, checkpoint, func(p Point) error {
		eans = append(eans, p.Ean)
		return nil
	})
	return eans, r, err
}

func (g *gateway) all() []string {
	var out []string
	for n := range g.points {
		out = append(out, g.ean(n+1))
	}
	return out
}

// Whatever breaks, and however often: each metering point once, and the
// manifest holds for all parts.
func TestQueryGoesOn(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		parts    []func(http.ResponseWriter, *part)
		requests int
		waits    int
		tokens   int
	}{
		"nothing breaks":           {[]func(http.ResponseWriter, *part){whole}, 1, 0, 1},
		"cut off twice":            {[]func(http.ResponseWriter, *part){cut(2), cut(4), whole}, 3, 2, 1},
		"cut off before a line":    {[]func(http.ResponseWriter, *part){cut(0), whole}, 2, 1, 1},
		"away, then there":         {[]func(http.ResponseWriter, *part){problem(503, "overloaded", "Retry-After", "3"), whole}, 2, 1, 1},
		"a proxy's error":          {[]func(http.ResponseWriter, *part){func(w http.ResponseWriter, _ *part) { http.Error(w, "<html>", http.StatusBadGateway) }, whole}, 2, 1, 1},
		"stopped by changed facts": {[]func(http.ResponseWriter, *part){stops(3, "evidence-changed", 409), whole}, 2, 1, 1},
		"the token ends":           {[]func(http.ResponseWriter, *part){stops(3, "unauthenticated", 401), whole}, 2, 0, 2},
		"the token ends twice":     {[]func(http.ResponseWriter, *part){stops(3, "unauthenticated", 401), stops(4, "unauthenticated", 401), whole}, 3, 0, 3},
		"no token accepted first":  {[]func(http.ResponseWriter, *part){problem(401, "unauthenticated"), whole}, 2, 0, 2},
		"the end is cut off":       {[]func(http.ResponseWriter, *part){func(w http.ResponseWriter, p *part) { p.begin(); p.to(5) }, whole}, 2, 1, 1},
		"progress without a metering point": {[]func(http.ResponseWriter, *part){func(w http.ResponseWriter, p *part) {
			p.begin()
			p.progress(0)
			p.to(5)
			p.progress(5)
			p.end(p.manifest(nil))
		}}, 1, 0, 1},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			g := newGateway(t, 5, c.parts...)
			k, waits := g.client(t, nil)
			eans, r, err := g.query(t, k, "")
			if err != nil {
				t.Fatal(err)
			}
			if !slices.Equal(eans, g.all()) {
				t.Errorf("delivered %q", eans)
			}
			if r.Requests != c.requests || r.Manifest.Points != 5 || len(*waits) != c.waits || g.tokens != c.tokens {
				t.Errorf("%d requests, manifest of %d, waits %v, %d tokens", r.Requests, r.Manifest.Points, *waits, g.tokens)
			}
		})
	}
}

// What the gateway says about when is what is done.
func TestQueryWaitsAsLongAsIsSaid(t *testing.T) {
	t.Parallel()
	g := newGateway(t, 5, problem(429, "rate-limited", "Retry-After", "40"), stops(2, "database-unavailable", 503), whole)
	k, waits := g.client(t, nil)
	if _, _, err := g.query(t, k, ""); err != nil {
		t.Fatal(err)
	}
	if len(*waits) != 2 || (*waits)[0] < 40*time.Second || (*waits)[1] < 7*time.Second || (*waits)[1] > 8*time.Second {
		t.Errorf("waited %v", *waits)
	}
}

// A stream that tells another story than the manifest, or a story that cannot
// be, is refused, and nothing is tried again.
func TestQueryRefusesWhatIsAltered(t *testing.T) {
	t.Parallel()
	changed := func(change func(map[string]any)) func(http.ResponseWriter, *part) {
		return func(_ http.ResponseWriter, p *part) { p.begin(); p.to(5); p.end(p.manifest(change)) }
	}
	set := func(name string, v any) func(http.ResponseWriter, *part) {
		return changed(func(m map[string]any) { m[name] = v })
	}
	lines := func(f func(p *part)) func(http.ResponseWriter, *part) {
		return func(_ http.ResponseWriter, p *part) { p.begin(); f(p); p.end(p.manifest(nil)) }
	}
	for name, answer := range map[string]func(http.ResponseWriter, *part){
		"a metering point left out": lines(func(p *part) { p.to(2); p.from = 3; p.to(5) }),
		"one twice":                 lines(func(p *part) { p.to(3); p.from = 2; p.to(5) }),
		"another value": lines(func(p *part) {
			p.to(4)
			p.chain.Add([]byte(p.g.point(5)))
			p.say("%s", strings.Replace(strings.TrimSuffix(p.g.point(5), "\n"), `"withheld":[]`, `"withheld": []`, 1))
			p.progress(5)
		}),
		"no progress":                    lines(func(p *part) { p.to(4); p.say("%s", strings.TrimSuffix(p.g.point(5), "\n")) }),
		"progress ahead":                 lines(func(p *part) { p.to(4); p.progress(5) }),
		"not in order of EAN":            lines(func(p *part) { p.to(4); p.say(`{"type":"point","sequence":5,"ean":"%s"}`, p.g.ean(1)) }),
		"an end too early":               lines(func(p *part) { p.to(4) }),
		"another begin":                  lines(func(p *part) { p.begin() }),
		"no begin":                       func(_ http.ResponseWriter, p *part) { p.to(5) },
		"an unknown line":                lines(func(p *part) { p.say(`{"type":"advert"}`) }),
		"no JSON":                        lines(func(p *part) { p.say(`{"type":`) }),
		"two values in a line":           lines(func(p *part) { p.say(`{"type":"progress","sequence":0,"done":0,"cursor":"c"} {}`) }),
		"no reason":                      lines(func(p *part) { p.say(`{"type":"end","complete":false}`) }),
		"no word of being complete":      lines(func(p *part) { p.say(`{"type":"end"}`) }),
		"no manifest":                    lines(func(p *part) { p.to(5); p.say(`{"type":"end","complete":true,"sequence":5,"done":5}`) }),
		"the manifest of another stream": set("query", base64.RawURLEncoding.EncodeToString(make([]byte, 32))),
		"of another caller":              set("sub", "8712423000025"),
		"of another request":             set("jti", "00000000-0000-7000-8000-000000000099"),
		"of a table":                     set("format", "csv"),
		"of other lines":                 set("digest", base64.RawURLEncoding.EncodeToString(make([]byte, 32))),
		"with other counts":              changed(func(m map[string]any) { m["withheld"], m["given"] = 4, 1 }),
		"with values":                    changed(func(m map[string]any) { m["expected"], m["delivered"] = 1, 1 }),
		"a forged manifest": func(_ http.ResponseWriter, p *part) {
			p.begin()
			p.to(5)
			m := p.manifest(nil)
			p.end(m[:len(m)-4] + "AAAA")
		},
		"another start": func(_ http.ResponseWriter, p *part) { p.from = 1; p.begin() },
		"a digest of nothing": func(_ http.ResponseWriter, p *part) {
			p.say(`{"type":"begin","interactionId":"%s","query":"AAAA","done":0}`, p.id)
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			g := newGateway(t, 5, answer)
			k, waits := g.client(t, nil)
			if _, _, err := g.query(t, k, ""); !errors.Is(err, ErrStream) {
				t.Errorf("%v", err)
			}
			if len(g.asked) != 1 || len(*waits) != 0 {
				t.Errorf("asked %d times", len(g.asked))
			}
		})
	}
	t.Run("signed by a key that is not pinned", func(t *testing.T) {
		t.Parallel()
		g := newGateway(t, 5, whole)
		other := newGateway(t, 5, whole).keys()
		k, _ := g.client(t, func(c *Config) { c.ManifestKeys = &other })
		if _, _, err := g.query(t, k, ""); !errors.Is(err, ErrStream) || !errors.Is(err, client.ErrManifest) {
			t.Errorf("%v", err)
		}
	})
	t.Run("going on with another query", func(t *testing.T) {
		t.Parallel()
		g := newGateway(t, 5, cut(2), func(_ http.ResponseWriter, p *part) {
			p.say(`{"type":"begin","interactionId":"%s","query":"%s","done":2}`, p.id, base64.RawURLEncoding.EncodeToString(make([]byte, 32)))
		})
		k, _ := g.client(t, nil)
		if eans, _, err := g.query(t, k, ""); !errors.Is(err, ErrStream) || len(eans) != 2 {
			t.Errorf("%v after %d", err, len(eans))
		}
	})
}

// ofList asks for a list of metering points.
func (g *gateway) ofList(t *testing.T, k *Client, checkpoint string, listed ...string) (points []Point, r *Result, err error) {
	t.Helper()
	q := client.ReadingsQuery{From: Date(2026, 3, 1), To: Date(2026, 4, 1), Purpose: client.PurposeBILLING, MeteringPoints: &listed}
	r, err = k.Query(t.Context(), q, checkpoint, func(p Point) error {
		points = append(points, p)
		return nil
	})
	return points, r, err
}

// A list comes as a whole, in whatever order it is given, over breaks and from
// each checkpoint.
func TestQueryOfAList(t *testing.T) {
	t.Parallel()
	g := newGateway(t, 5, cut(2), stops(4, "evidence-changed", 409), whole)
	k, _ := g.client(t, nil)
	listed := []string{g.ean(4), g.ean(1), g.ean(5), g.ean(3), g.ean(2)}
	points, r, err := g.ofList(t, k, "", listed...)
	if err != nil {
		t.Fatal(err)
	}
	if len(points) != 5 || r.Requests != 3 || r.Manifest.Points != 5 {
		t.Errorf("%d metering points in %d requests", len(points), r.Requests)
	}
	for i, q := range g.asked {
		if !slices.Equal(*q.MeteringPoints, listed) {
			t.Errorf("request %d lists %q", i+1, *q.MeteringPoints)
		}
	}
	for i, p := range points {
		slices.Reverse(listed)
		rest, _, err := g.ofList(t, k, p.Checkpoint, listed...)
		if err != nil || len(rest) != 4-i {
			t.Errorf("after %d: %v, %d more", i+1, err, len(rest))
		}
	}
}

// A manifest signs the gateway's counts: that a list was answered is for the
// client to see.
func TestQueryHoldsTheList(t *testing.T) {
	t.Parallel()
	leftOut := func(_ http.ResponseWriter, p *part) {
		p.begin()
		p.to(p.g.points)
		p.end(p.manifest(func(m map[string]any) { m["left_out"] = 1 }))
	}
	// another has metering point 7 in the place of the third.
	another := func(_ http.ResponseWriter, p *part) {
		p.begin()
		p.to(2)
		line := strings.Replace(p.g.point(3), p.g.ean(3), p.g.ean(7), 1)
		p.chain.Add([]byte(line))
		p.say("%s", strings.TrimSuffix(line, "\n"))
		p.progress(3)
		p.end(p.manifest(nil))
	}
	for name, c := range map[string]struct {
		points int
		listed []int
		parts  []func(http.ResponseWriter, *part)
		given  int // metering points delivered
		reason string
	}{
		"the last ones left out":   {2, []int{1, 2, 3, 4}, []func(http.ResponseWriter, *part){whole}, 2, "2 of 4"},
		"the first one left out":   {3, []int{0, 1, 2, 3}, []func(http.ResponseWriter, *part){whole}, 0, "number 1 is not"},
		"one between left out":     {3, []int{1, 2, 3, 7}, []func(http.ResponseWriter, *part){another}, 2, "number 3 is not"},
		"another in its place":     {3, []int{1, 2, 3}, []func(http.ResponseWriter, *part){another}, 2, "number 3 is not"},
		"one more between":         {3, []int{1, 3}, []func(http.ResponseWriter, *part){whole}, 1, "number 2 is not"},
		"one more at the end":      {3, []int{1, 2}, []func(http.ResponseWriter, *part){whole}, 2, "more metering points than the 2"},
		"one listed twice":         {3, []int{1, 2, 2, 3}, []func(http.ResponseWriter, *part){whole}, 2, "number 3 is not"},
		"none":                     {0, []int{1}, []func(http.ResponseWriter, *part){whole}, 0, "0 of 1"},
		"some of an empty list":    {3, nil, []func(http.ResponseWriter, *part){whole}, 0, "more metering points than the 0"},
		"left out after a break":   {3, []int{1, 2, 3, 4}, []func(http.ResponseWriter, *part){cut(2), whole}, 3, "3 of 4"},
		"another after a break":    {3, []int{1, 2, 3}, []func(http.ResponseWriter, *part){cut(1), another}, 2, "number 3 is not"},
		"left out by the manifest": {3, []int{1, 2, 3}, []func(http.ResponseWriter, *part){leftOut}, 3, "1 metering points left out"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			g := newGateway(t, c.points, c.parts...)
			k, _ := g.client(t, nil)
			listed := []string{}
			for _, n := range c.listed {
				listed = append(listed, g.ean(n))
			}
			points, _, err := g.ofList(t, k, "", listed...)
			if !errors.Is(err, ErrStream) || !strings.Contains(err.Error(), c.reason) || strings.Contains(err.Error(), "87168710") {
				t.Errorf("%v, want %q", err, c.reason)
			}
			if len(points) != c.given || len(g.asked) != len(c.parts) {
				t.Errorf("%d metering points, asked %d times", len(points), len(g.asked))
			}
		})
	}
	t.Run("without a list the gateway leaves out", func(t *testing.T) {
		t.Parallel()
		g := newGateway(t, 3, leftOut)
		k, _ := g.client(t, nil)
		if _, r, err := g.query(t, k, ""); err != nil || r.Manifest.LeftOut != 1 {
			t.Errorf("%v, %+v", err, r)
		}
	})
	t.Run("the checkpoint of another list", func(t *testing.T) {
		t.Parallel()
		g := newGateway(t, 3, whole)
		k, _ := g.client(t, nil)
		points, _, err := g.ofList(t, k, "", g.ean(1), g.ean(2), g.ean(3))
		if err != nil {
			t.Fatal(err)
		}
		for _, listed := range [][]string{{}, {g.ean(1), g.ean(2)}, {g.ean(1), g.ean(2), g.ean(4)}, {g.ean(0), g.ean(1), g.ean(2), g.ean(3)}} {
			if _, _, err := g.ofList(t, k, points[2].Checkpoint, listed...); err == nil || !strings.Contains(err.Error(), "other metering points") {
				t.Errorf("%d listed: %v", len(listed), err)
			}
		}
		if len(g.asked) != 1 {
			t.Errorf("asked %d times", len(g.asked))
		}
	})
}

func TestQueryGivesUp(t *testing.T) {
	t.Parallel()
	t.Run("when patience ends", func(t *testing.T) {
		t.Parallel()
		g := newGateway(t, 5, cut(2))
		k, waits := g.client(t, func(c *Config) { c.Patience = 10 * time.Second })
		eans, _, err := g.query(t, k, "")
		if !errors.Is(err, ErrBroken) || !errors.Is(err, io.ErrUnexpectedEOF) || len(eans) != 2 {
			t.Errorf("%v after %d", err, len(eans))
		}
		var sum time.Duration
		for _, w := range *waits {
			sum += w
		}
		if sum > 10*time.Second || len(*waits) < 4 || (*waits)[3] <= (*waits)[0] {
			t.Errorf("waited %v", *waits)
		}
	})
	t.Run("when the next token is not accepted either", func(t *testing.T) {
		t.Parallel()
		g := newGateway(t, 5, problem(401, "unauthenticated"))
		k, waits := g.client(t, nil)
		if _, _, err := g.query(t, k, ""); !errors.Is(err, Unauthenticated) || g.tokens != 2 || len(*waits) != 0 {
			t.Errorf("%v, %d tokens, %v", err, g.tokens, *waits)
		}
	})
	t.Run("when nothing helps", func(t *testing.T) {
		t.Parallel()
		for _, part := range []func(http.ResponseWriter, *part){problem(400, "invalid-parameters"), problem(403, "insufficient-scope"), problem(500, "internal-error"), stops(2, "evidence-invalid", 500)} {
			g := newGateway(t, 5, part)
			k, waits := g.client(t, nil)
			if _, _, err := g.query(t, k, ""); AsProblem(err) == nil || len(*waits) != 0 || len(g.asked) != 1 {
				t.Errorf("%v, waits %v", err, *waits)
			}
		}
	})
	t.Run("when it is told to", func(t *testing.T) {
		t.Parallel()
		g := newGateway(t, 5, whole)
		k, _ := g.client(t, nil)
		enough := errors.New("enough")
		_, err := k.Query(t.Context(), client.ReadingsQuery{}, "", func(Point) error { return enough })
		if !errors.Is(err, enough) || len(g.asked) != 1 {
			t.Errorf("%v", err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		n := 0
		_, err = k.Query(ctx, client.ReadingsQuery{}, "", func(Point) error {
			if n++; n == 2 {
				cancel()
			}
			return nil
		})
		if err != nil && !errors.Is(err, context.Canceled) {
			t.Errorf("%v", err)
		}
	})
	t.Run("when nothing comes", func(t *testing.T) {
		t.Parallel()
		g := newGateway(t, 5, func(w http.ResponseWriter, p *part) {
			p.begin()
			p.to(2)
			<-time.After(2 * time.Second)
		}, whole)
		k, _ := g.client(t, func(c *Config) { c.Stall = 100 * time.Millisecond })
		if eans, r, err := g.query(t, k, ""); err != nil || r.Requests < 2 || !slices.Equal(eans, g.all()) {
			t.Errorf("%v, %q", err, eans)
		}
	})
}

// A checkpoint goes on in another process, and cannot be made better than it is.
func TestCheckpoints(t *testing.T) {
	t.Parallel()
	g := newGateway(t, 5, whole)
	k, _ := g.client(t, nil)
	var points []Point
	if _, err := k.Query(t.Context(), client.ReadingsQuery{}, "", func(p Point) error { points = append(points, p); return nil }); err != nil {
		t.Fatal(err)
	}
	for i, p := range points {
		eans, r, err := g.query(t, k, p.Checkpoint)
		if err != nil || !slices.Equal(eans, g.all()[i+1:]) || r.Manifest.Points != 5 {
			t.Errorf("after %d: %v, %q", i+1, err, eans)
		}
	}
	raw, err := base64.RawURLEncoding.DecodeString(points[1].Checkpoint)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		old, new string
		want     error
	}{
		{`"withheld":2`, `"withheld":1`, ErrStream},
		{`"sequence":2`, `"sequence":1`, ErrStream},
		{`"cursor":"after-2"`, `"cursor":"after-3"`, ErrStream},
		{`"ean":"` + g.ean(2), `"ean":"` + g.ean(4), ErrStream},
		{`"sequence":2`, `"sequence":0`, nil},
		{`"cursor":"after-2"`, `"cursor":""`, nil},
		{`{"cursor`, `[{"cursor`, nil},
		{`}`, `}{}`, nil},
	} {
		forged := strings.Replace(string(raw), c.old, c.new, 1)
		if forged == string(raw) {
			t.Fatalf("%s is not in a checkpoint", c.old)
		}
		_, _, err := g.query(t, k, base64.RawURLEncoding.EncodeToString([]byte(forged)))
		if err == nil || c.want != nil && !errors.Is(err, c.want) {
			t.Errorf("%s made %s: %v", c.old, c.new, err)
		}
	}
	for _, none := range []string{"AAAA", "!", points[0].Checkpoint[:20]} {
		if _, _, err := g.query(t, k, none); err == nil {
			t.Errorf("%q is taken for a checkpoint", none)
		}
	}
}

// A stream is given as young a token as there can be; other requests use one
// until little is left of it.
func TestTokens(t *testing.T) {
	t.Parallel()
	g := newGateway(t, 1, whole)
	k, _ := g.client(t, nil)
	now := time.Now()
	k.tokens.now = func() time.Time { return now }
	get := func(least time.Duration, want string) {
		t.Helper()
		if got, err := k.tokens.get(t.Context(), least); err != nil || got != want {
			t.Errorf("%q, %v; want %q", got, err, want)
		}
	}
	get(0, "token-1")
	now = now.Add(239 * time.Second)
	get(0, "token-1")
	get(time.Hour, "token-2")
	get(time.Hour, "token-2") // not one for each
	now = now.Add(241 * time.Second)
	get(0, "token-3")
	k.tokens.drop("Bearer token-2")
	get(0, "token-3")
	k.tokens.drop("Bearer token-3")
	get(0, "token-4")
}

// A stranger's certificate and a refusing issuer are no reason to try again.
func TestPermanentFailures(t *testing.T) {
	t.Parallel()
	g := newGateway(t, 1, whole)
	k, waits := g.client(t, func(c *Config) { c.TLS = &tls.Config{RootCAs: x509.NewCertPool()} })
	var unknown x509.UnknownAuthorityError
	if _, _, err := g.query(t, k, ""); !errors.As(err, &unknown) || len(*waits) != 0 {
		t.Errorf("%v, waits %v", err, *waits)
	}
	k, waits = g.client(t, func(c *Config) { c.Issuer = g.URL + "/elsewhere" })
	var refused *TokenError
	if _, _, err := g.query(t, k, ""); !errors.As(err, &refused) || len(*waits) != 0 {
		t.Errorf("%v, waits %v", err, *waits)
	}
	if _, err := k.Status(t.Context()); !errors.As(err, &refused) || len(*waits) != 0 {
		t.Errorf("%v, waits %v", err, *waits)
	}
	for _, c := range []Config{{}, {Gateway: "http://h", Issuer: "https://h", ClientID: "1"}, {Gateway: "https://h", Issuer: "https://h"}, {Gateway: "https://h", Issuer: "https://h", ClientID: "1", CAFile: "missing"}} {
		if _, err := Open(c); err == nil {
			t.Errorf("%+v opens", c)
		}
	}
}

func FuzzCheckpoint(f *testing.F) {
	f.Add(base64.RawURLEncoding.EncodeToString([]byte(`{"cursor":"c","query":"` + strings.Repeat("A", 43) + `=","ean":"1","sequence":1,"digest":"` + strings.Repeat("A", 43) + `="}`)))
	f.Add("")
	f.Fuzz(func(t *testing.T, text string) {
		var s state
		if s.parse(text) != nil {
			return
		}
		again, err := s.text()
		if err != nil {
			t.Fatal(err)
		}
		var other state
		if err := other.parse(again); err != nil || other.Cursor != s.Cursor || other.Sequence != s.Sequence {
			t.Errorf("%q: %v", text, err)
		}
	})
}
