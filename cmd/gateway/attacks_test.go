package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"encoding/base64"
	"encoding/json"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"kluis/authz"
	"kluis/internal/audit"
	"kluis/internal/devpki"
	"kluis/meter"
)

// Where no HTTP is possible the TLS alert is the answer, also for the probes.
func TestTLSRefuses(t *testing.T) {
	t.Parallel()
	w := newWorld(t, options{})
	a := authorities()
	expired := must(a.supplier.Issue(devpki.Leaf{CommonName: "x", NotBefore: time.Now().Add(-48 * time.Hour), NotAfter: time.Now().Add(-time.Hour)}))
	other := must(a.stranger.Issue(devpki.Leaf{CommonName: "supplier " + w.gln(1)}))
	service := must(a.operator.Issue(devpki.Leaf{CommonName: "gateway"}))
	self := other
	self.PrivateKey = must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader)) // somebody else's certificate

	for name, c := range map[string]*http.Client{
		"no certificate":              w.http(),
		"another authority's":         w.http(other),
		"an operator's service":       w.http(service),
		"expired":                     w.http(expired),
		"without its key":             w.http(self),
		"TLS 1.2, though well signed": oldTLS(w.http(w.a.cert)),
	} {
		for _, path := range []string{"/healthz", "/v1/status"} {
			// A client that is not asked for the very certificate sends none:
			// make it send what it has.
			tr := c.Transport.(*http.Transport)
			if certs := tr.TLSClientConfig.Certificates; len(certs) > 0 {
				tr.TLSClientConfig.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &certs[0], nil }
			}
			resp, err := c.Get(w.url + path)
			if err == nil {
				resp.Body.Close()
				t.Errorf("%s: answered %d", name, resp.StatusCode)
			}
		}
	}
	if r := w.do(w.http(w.a.cert), http.MethodGet, "/healthz", nil); r.status != 200 {
		t.Errorf("with the right certificate: %d", r.status)
	}
}

func oldTLS(c *http.Client) *http.Client {
	c.Transport.(*http.Transport).TLSClientConfig.MaxVersion = tls.VersionTLS12
	return c
}

// A token that is not this caller's now is refused, and nothing is fetched.
func TestCredentialsRefused(t *testing.T) {
	t.Parallel()
	w := newWorld(t, options{})
	e := w.customer(1, w.a, w.consent(w.a))
	w.fill(e)
	good, others := w.token(w.a), w.token(w.b)
	parts := strings.Split(good, ".")
	segment := func(v map[string]any) string {
		return base64.RawURLEncoding.EncodeToString(must(json.Marshal(v)))
	}
	var claims map[string]any
	if err := json.Unmarshal(must(base64.RawURLEncoding.DecodeString(parts[1])), &claims); err != nil {
		t.Fatal(err)
	}
	claims["sub"], claims["client_id"] = w.b.gln.String(), w.b.gln.String()
	none := segment(map[string]any{"alg": "none", "typ": "at+jwt", "kid": "x"})
	w.register(w.a, func(f *authz.SupplierFacts) { f.Scopes = append(f.Scopes, "other:read") })
	noScope, _, err := w.pool.issuer.SignToken(t.Context(), w.a.record, w.a.thumbprint(), []string{"other:read"}, time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	nobody := &supplier{cert: must(authorities().supplier.Issue(devpki.Leaf{CommonName: "nobody"}))}

	for name, tc := range map[string]struct {
		who       *supplier
		change    func(*http.Request)
		status    int
		problem   string
		challenge string
		calls     string
	}{
		"no token":                      {w.a, nil, 401, "unauthenticated", `Bearer realm="kluis"`, ""},
		"another scheme":                {w.a, func(r *http.Request) { r.SetBasicAuth("a", "b") }, 401, "unauthenticated", `Bearer realm="kluis"`, ""},
		"nonsense":                      {w.a, bearer("nonsense"), 401, "unauthenticated", `Bearer realm="kluis", error="invalid_token"`, ""},
		"unsigned":                      {w.a, bearer(none + "." + parts[1] + "."), 401, "unauthenticated", `Bearer realm="kluis", error="invalid_token"`, ""},
		"altered":                       {w.a, bearer(parts[0] + "." + segment(claims) + "." + parts[2]), 401, "unauthenticated", `Bearer realm="kluis", error="invalid_token"`, ""},
		"supplier B's token":            {w.a, bearer(others), 401, "unauthenticated", `Bearer realm="kluis", error="invalid_token"`, ""},
		"supplier A's, B's certificate": {w.b, bearer(good), 401, "unauthenticated", `Bearer realm="kluis", error="invalid_token"`, ""},
		"certificate of nobody":         {nobody, bearer(good), 401, "unauthenticated", `Bearer realm="kluis", error="invalid_token"`, ""},
		"two headers":                   {w.a, func(r *http.Request) { r.Header["Authorization"] = []string{"Bearer " + good, "Bearer " + good} }, 401, "unauthenticated", `Bearer realm="kluis", error="invalid_token"`, ""},
		"scope missing":                 {w.a, bearer(noScope), 403, "insufficient-scope", `Bearer realm="kluis", error="insufficient_scope", scope="readings:read"`, "supplier"},
	} {
		c := w.http(tc.who.cert)
		for _, path := range []string{w.path(e), accessPath(e), "/v1/metering-points", "/v1/status"} {
			w.tap.taken()
			r := w.do(c, http.MethodGet, path, tc.change)
			if r.status != tc.status || r.problem(t) != tc.problem || r.header.Get("WWW-Authenticate") != tc.challenge {
				t.Errorf("%s: %d %s %q", name, r.status, r.body, r.header.Get("WWW-Authenticate"))
			}
			if got := w.tap.taken(); got != tc.calls {
				t.Errorf("%s: calls %q", name, got)
			}
		}
	}

	// In the query string it is refused, with a valid one in the header too.
	for _, change := range []func(*http.Request){nil, bearer(good)} {
		r := w.do(w.http(w.a.cert), http.MethodGet, w.path(e, "access_token", good), change)
		if r.status != 400 || r.problem(t) != "invalid-parameters" || !strings.Contains(string(r.body), "/query/access_token") || strings.Contains(string(r.body), good) {
			t.Errorf("token in the query string: %d %s", r.status, r.body)
		}
	}
	if len(w.records()) != 0 {
		t.Error("a record of a caller that is nobody")
	}
	if strings.Contains(w.log.String(), parts[2]) {
		t.Error("a token is in the log")
	}
}

// What the supplier record says counts from the next request, whatever tokens
// are out; and what does not verify says nothing.
func TestSupplierRecordHasTheLastWord(t *testing.T) {
	t.Parallel()
	now := time.Now()
	for name, tc := range map[string]struct {
		change func(*world)
		status int
	}{
		"revoked": {func(w *world) {
			w.register(w.a, func(f *authz.SupplierFacts) { f.Certificates[0].RevokedAt = now })
		}, 401},
		"suspended": {func(w *world) { w.register(w.a, func(f *authz.SupplierFacts) { f.Suspended = true }) }, 401},
		"another certificate only": {func(w *world) {
			w.register(w.a, func(f *authz.SupplierFacts) { f.Certificates[0].Thumbprint = w.b.thumbprint() })
		}, 401},
		"scope withdrawn": {func(w *world) { w.register(w.a, func(f *authz.SupplierFacts) { f.Scopes = nil }) }, 403},
		"record gone":     {func(w *world) { w.sql(`DELETE FROM supplier WHERE gln = $1`, w.a.gln.Int64()) }, 401},
		"another's record in its place": {func(w *world) {
			w.sql(`UPDATE supplier SET record = $2 WHERE gln = $1`, w.a.gln.Int64(), w.b.record)
		}, 401},
		"a bit flipped": {func(w *world) {
			b := slices.Clone(w.a.record)
			b[len(b)/2] ^= 1
			w.sql(`UPDATE supplier SET record = $2 WHERE gln = $1`, w.a.gln.Int64(), b)
		}, 500},
		"signed by a stranger": {func(w *world) {
			r := must(w.pool.keys.Supplier(w.a.record))
			w.sql(`UPDATE supplier SET record = $2 WHERE gln = $1`, w.a.gln.Int64(), must(authz.Seal(r.Payload(), newSigner())))
		}, 500},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, options{})
			e := w.customer(1, w.a)
			token, c := w.token(w.a), w.http(w.a.cert)
			ask := func() reply { return w.do(c, http.MethodGet, w.path(e), bearer(token)) }
			if r := ask(); r.status != 200 {
				t.Fatalf("before: %d %s", r.status, r.body)
			}
			tc.change(w)
			w.tap.taken()
			if r := ask(); r.status != tc.status {
				t.Errorf("%d %s", r.status, r.body)
			}
			if got := w.tap.taken(); got != "supplier" {
				t.Errorf("calls %q", got)
			}
		})
	}
}

// sql does what a superuser of the database can do.
func (w *world) sql(statement string, args ...any) {
	w.t.Helper()
	if _, err := w.owner().ExecContext(w.t.Context(), statement, args...); err != nil {
		w.t.Fatal(err)
	}
}

// newSigner is a seal key that nobody has pinned.
func newSigner() authz.Signer { return stranger{must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))} }

type stranger struct{ key *ecdsa.PrivateKey }

func (s stranger) KeyID() authz.KeyID { return authz.KeyIDOf(&s.key.PublicKey) }

func (s stranger) SignDigest(digest [32]byte) (sig [64]byte, err error) {
	r, v, err := ecdsa.Sign(rand.Reader, s.key, digest[:])
	if err != nil {
		return sig, err
	}
	r.FillBytes(sig[:32])
	v.FillBytes(sig[32:])
	return sig, nil
}

// An unknown metering point and one of another supplier's: the same answer but
// for the id, the same calls, a record of the same shape.
func TestUnknownAndForeignAreAlike(t *testing.T) {
	t.Parallel()
	w := newWorld(t, options{})
	foreign := w.customer(1, w.b, w.consent(w.b))
	w.fill(foreign)
	gas := w.ean(2)
	w.legalFile(gas, meter.Gas, authz.SetOccupancy{Days: meter.DayRange{From: 0, To: meter.MaxDay}}, authz.SetSupply{Supplier: w.b.gln, Days: meter.DayRange{From: 0, To: meter.MaxDay}})
	bare := w.ean(3) // registered, without a fact
	w.legalFile(bare, meter.Electricity)
	unknown := w.ean(4)

	type seen struct {
		status int
		body   string
		header string
		calls  string
		record string
		log    string
	}
	for name, query := range map[string][]string{
		"all fields":   {},
		"class":        {"class", "intervals"},
		"named":        {"fields", "import_low,gas"},
		"at P1M":       {"resolution", "P1M", "kind", "REGISTER"},
		"for billing":  {"purpose", "BILLING"},
		"of a switch":  {"purpose", "SWITCH"},
		"no such rule": {"purpose", "CUSTOMER_SERVICE"},
	} {
		var want seen
		for i, e := range []meter.EAN{unknown, foreign, gas, bare} {
			w.tap.taken()
			before := len(w.log.String())
			r := w.get(w.a, w.path(e, query...))
			id := r.header.Get("X-Interaction-Id")
			r.header.Del("Date")
			log := w.log.String()[before:]
			var line map[string]any
			if err := json.Unmarshal([]byte(log), &line); err != nil {
				t.Fatalf("log %q: %v", log, err)
			}
			delete(line, "time")
			delete(line, "duration")
			recs := w.records()
			rec := recs[len(recs)-1]
			if rec.EAN != e || rec.Outcome != audit.NoRelation {
				t.Errorf("record %+v", rec)
			}
			rec.EAN, rec.InteractionID, rec.At, rec.TokenID = unknown, [16]byte{1}, time.Unix(1, 0), [32]byte{}
			got := seen{
				r.status, strings.ReplaceAll(string(r.body), id, "ID"), strings.ReplaceAll(string(must(json.Marshal(r.header))), id, "ID"),
				w.tap.taken(), string(must(rec.Encode())), strings.ReplaceAll(string(must(json.Marshal(line))), id, "ID"),
			}
			if got.status != 404 || r.problem(t) != "metering-point-not-found" || got.calls != "supplier legal-file record" {
				t.Fatalf("%s: %+v", name, got)
			}
			if i == 0 {
				want = got
			} else if got != want {
				t.Errorf("%s: metering point %d is answered\n%+v\nand an unknown one\n%+v", name, i, got, want)
			}
		}
	}
}

// The database's own word is worth nothing.
func TestFactsMadeUpInTheDatabase(t *testing.T) {
	t.Parallel()
	since := meter.DayRange{From: day("2020-01-01"), To: meter.MaxDay}
	for name, tc := range map[string]struct {
		forge   func(w *world, e meter.EAN)
		status  int
		problem string
		outcome audit.Outcome
	}{
		"rows in the indexes": {func(w *world, e meter.EAN) {
			w.sql(`INSERT INTO supply_period (ean, gln, from_day) VALUES ($1, $2, '2020-01-01')`, e.Int64(), w.a.gln.Int64())
			w.sql(`INSERT INTO consent (ean, consent_id, gln, state, from_day, valid_until) VALUES ($1, gen_random_uuid(), $2, 2, '2020-01-01', now() + interval '1 year')`, e.Int64(), w.a.gln.Int64())
		}, 404, "metering-point-not-found", audit.NoRelation},
		"a legal file signed by a stranger": {func(w *world, e meter.EAN) {
			f := must(w.pool.keys.LegalFile(must(w.registrar.LegalFile(t.Context(), e)).Sealed))
			f = must(authz.Apply(f, authz.SetSupply{Supplier: w.a.gln, Days: meter.DayRange{From: day("2026-01-01"), To: meter.MaxDay}}, authz.Actor{Kind: authz.ByOperator, Name: "registrar"}, time.Now().UTC().Truncate(time.Microsecond), w.profile.Location()))
			w.sql(`INSERT INTO legal_file (ean, version, file, sealed_at) VALUES ($1, $2, $3, now())`, e.Int64(), f.Version(), must(authz.Seal(f.Payload(), newSigner())))
		}, 500, "evidence-invalid", audit.Failed},
		"a legal file without a signature": {func(w *world, e meter.EAN) {
			f := must(w.pool.keys.LegalFile(must(w.registrar.LegalFile(t.Context(), e)).Sealed))
			w.sql(`UPDATE legal_file SET file = $2 WHERE ean = $1 AND version = (SELECT max(version) FROM legal_file WHERE ean = $1)`, e.Int64(), f.Payload())
		}, 500, "evidence-invalid", audit.Failed},
		"a bit flipped": {func(w *world, e meter.EAN) {
			w.sql(`UPDATE legal_file SET file = set_bit(file, 300, 1 - get_bit(file, 300)) WHERE ean = $1`, e.Int64())
		}, 500, "evidence-invalid", audit.Failed},
		"the legal file of the caller's own customer": {func(w *world, e meter.EAN) {
			own := w.customer(2, w.a)
			w.sql(`UPDATE legal_file SET file = $2 WHERE ean = $1`, e.Int64(), must(w.registrar.LegalFile(t.Context(), own)).Sealed)
		}, 500, "evidence-invalid", audit.Failed},
		"a supplier record in place of the legal file": {func(w *world, e meter.EAN) {
			w.sql(`UPDATE legal_file SET file = $2 WHERE ean = $1`, e.Int64(), w.a.record)
		}, 500, "evidence-invalid", audit.Failed},
		"all versions deleted": {func(w *world, e meter.EAN) {
			w.sql(`DELETE FROM legal_file WHERE ean = $1`, e.Int64())
		}, 404, "metering-point-not-found", audit.NoRelation},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, options{})
			e := w.customer(1, w.b, authz.SetOptOut{Days: meter.DayRange{From: since.From, To: since.From + 1}})
			w.fill(e)
			tc.forge(w, e)
			w.tap.taken()
			r := w.get(w.a, w.path(e))
			if r.status != tc.status || r.problem(t) != tc.problem {
				t.Errorf("%d %s", r.status, r.body)
			}
			if got := w.tap.taken(); got != "supplier legal-file record" {
				t.Errorf("calls %q", got)
			}
			recs := w.records()
			if len(recs) != 1 || recs[0].Outcome != tc.outcome || len(recs[0].Granted) != 0 {
				t.Errorf("records %+v", recs)
			}
			// Neither does a list show it.
			if r := w.get(w.a, "/v1/metering-points"); r.status != 200 || strings.Contains(string(r.body), e.String()) {
				t.Errorf("list: %d %s", r.status, r.body)
			}
		})
	}
}

// A gateway that asks for more than was granted gets nothing more: here it is
// the database that hands out another customer's rows.
func TestRowsOfAnotherCustomer(t *testing.T) {
	t.Parallel()
	w := newWorld(t, options{})
	mine, foreign := w.customer(1, w.a), w.customer(2, w.b)
	w.fill(mine)
	w.fill(foreign)
	w.sql(`DELETE FROM sealed_block WHERE ean = $1`, mine.Int64())
	w.sql(`DELETE FROM data_key WHERE ean = $1`, mine.Int64())
	w.sql(`UPDATE data_key SET ean = $1 WHERE ean = $2`, mine.Int64(), foreign.Int64())
	w.sql(`UPDATE sealed_block SET ean = $1 WHERE ean = $2`, mine.Int64(), foreign.Int64())
	a := w.answerOf(w.get(w.a, w.path(mine, "fields", "import_low")))
	for _, s := range a.Series {
		if s.DeliveredCount != 0 {
			t.Errorf("%d values of another customer", s.DeliveredCount)
		}
	}
	if len(a.Withheld) == 0 || a.Withheld[0].Reason != "DAMAGED" {
		t.Errorf("withheld %+v", a.Withheld)
	}
	if got := w.metric("kluis_gateway_block_faults_total", "fault", "damaged"); got < 30 {
		t.Errorf("%v damaged blocks counted", got)
	}
}

func TestRevokedConsentCountsFromTheNextRequest(t *testing.T) {
	t.Parallel()
	w := newWorld(t, options{})
	e := w.customer(1, w.a, w.consent(w.a))
	w.fill(e)
	if a := w.answerOf(w.get(w.a, w.path(e, "class", "intervals"))); len(a.Series) != 2 {
		t.Fatalf("before: %+v", a)
	}
	w.legalFile(e, meter.Electricity, authz.RevokeConsent{ID: [16]byte{1}})
	w.tap.taken()
	a := w.answerOf(w.get(w.a, w.path(e, "class", "intervals")))
	if len(a.Series) != 0 || len(a.Withheld) != 2 || a.Withheld[0].Reason != "CONSENT_REVOKED" {
		t.Errorf("after: %+v", a)
	}
	if got := w.tap.taken(); got != "supplier legal-file record" {
		t.Errorf("calls %q", got)
	}
}
