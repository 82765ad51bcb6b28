package config

import (
	"errors"
	"fmt"
	"net"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Bounds that Validate enforces.
const (
	DefaultTokenLifetime = 5 * time.Minute
	maxTokenLifetime     = time.Hour
	defaultMaxAge        = 12 * time.Hour
	maxMaxAge            = 24 * time.Hour
	maxRequestTimeout    = 5 * time.Minute
	maxKeyCacheLifetime  = time.Hour
	maxCallTimeout       = time.Minute
	maxStuckLimit        = 100
	minRenewAfter        = 1000
	maxRenewAfter        = 1_000_000_000
	maxSealRate          = 1_000_000
	maxPointsPerToken    = 1_000_000
	maxJournalDays       = 3650
	maxWorkers           = 64
	maxTokens            = 16 // of one role
	maxLimit             = 1_000_000
)

// methods are the gRPC methods of a cryptoserver that an allow list may name.
var methods = []string{"Open", "Mint", "Seal", "SealStep", "TakeStep", "SignManifest", "SealSupplier", "TakeSupplierStep", "SignToken", "SignStaffToken", "SignControl", "PutControl", "Rewrap", "Reseal", "ReadJournal", "SignCheckpoint", "SealIdentity", "FindIndex", "OpenIdentity", "Status"}

func (c *Gateway) setDefaults()      { c.RequestTimeout = Duration(10 * time.Second) }
func (c *Cryptoserver) setDefaults() { c.KeyCache = KeyCache{4096, Duration(5 * time.Minute)} }

// Lifetime is MaxLifetime or its default.
func (i Issuer) Lifetime() time.Duration {
	if i.MaxLifetime == 0 {
		return DefaultTokenLifetime
	}
	return time.Duration(i.MaxLifetime)
}

// Age is MaxAge or its default.
func (i IdentityProvider) Age() time.Duration {
	if i.MaxAge == 0 {
		return defaultMaxAge
	}
	return time.Duration(i.MaxAge)
}

// Validate reports everything missing or out of range, a line each.
func (c Gateway) Validate() error {
	var p problems
	p.listen("listen", c.Listen)
	p.listen("metrics_listen", c.MetricsListen)
	p.https("public_url", c.PublicURL)
	p.tls("tls", c.TLS)
	p.database("database_url", c.DatabaseURL)
	p.required("profile_file", c.ProfileFile)
	p.required("seal_keys_file", c.SealKeysFile)
	p.required("cursor_keys_file", c.CursorKeysFile)
	p.issuers(c.Issuers, true)
	p.operator(c.OperatorGLN, c.Issuers, nil)
	p.cryptoservers("cryptoservers", c.Cryptoservers)
	p.duration("request_timeout", c.RequestTimeout, maxRequestTimeout)
	p.limits("limits", c.Limits)
	p.traces(c.Traces, true)
	return p.err()
}

// Validate reports everything missing or out of range, a line each.
func (c IssuerProcess) Validate() error {
	var p problems
	p.listen("listen", c.Listen)
	p.https("url", c.URL)
	p.tls("tls", c.TLS)
	p.database("database_url", c.DatabaseURL)
	p.required("seal_keys_file", c.SealKeysFile)
	p.required("jwks_file", c.JWKSFile)
	if c.OperatorGLN != "" {
		p.gln("operator_gln", c.OperatorGLN)
	}
	p.cryptoservers("cryptoservers", c.Cryptoservers)
	return p.err()
}

// Validate reports everything missing or out of range, a line each.
func (c Cryptoserver) Validate() error {
	var p problems
	p.name("id", c.ID)
	p.listen("listen", c.Listen)
	if c.MetricsListen != "" {
		p.listen("metrics_listen", c.MetricsListen)
	}
	p.tls("tls", c.TLS)
	for m := range c.Allow {
		p.check(slices.Contains(methods, m), "allow."+m, "no such method; there are "+strings.Join(methods, ", "))
		p.check(!slices.Contains(c.Allow[m], ""), "allow."+m, "a client identity is empty")
	}
	p.required("profile_file", c.ProfileFile)
	p.required("seal_keys_file", c.SealKeysFile)
	p.required("module", c.Module)
	t := c.Tokens
	p.tokens(t)
	if len(t.Open)+len(t.Mint)+len(t.Rotate) > 0 || t.Seal != nil {
		p.required("probe_key_file", c.ProbeKeyFile)
	}
	if len(t.Open) > 0 || t.Seal != nil && len(c.Allow["TakeStep"])+len(c.Allow["TakeSupplierStep"])+len(c.Allow["SignManifest"])+len(c.Allow["FindIndex"]) > 0 || len(c.Issuers) > 0 {
		p.issuers(c.Issuers, false)
	}
	if t.Sign != nil {
		p.https("token.issuer", c.Token.Issuer)
		p.required("token.audience", c.Token.Audience)
	}
	p.operator(c.OperatorGLN, c.Issuers, c.IdentityProviders)
	p.identityProviders(c.IdentityProviders)
	p.check(t.Sign != nil || len(c.IdentityProviders) == 0, "identity_providers", "are for a server that signs tokens: name tokens.sign")
	if len(t.Open) > 0 || t.Seal != nil {
		p.required("journal_dir", c.JournalDir)
	}
	p.check(c.JournalDays >= 0 && c.JournalDays <= maxJournalDays, "journal_days", fmt.Sprintf("must be from 1 to %d", maxJournalDays))
	p.check(c.KeyCache.Size > 0 && c.KeyCache.Size <= 1<<20, "key_cache.size", "must be from 1 to 1048576")
	p.duration("key_cache.lifetime", c.KeyCache.Lifetime, maxKeyCacheLifetime)
	if c.CallTimeout != 0 {
		p.duration("call_timeout", c.CallTimeout, maxCallTimeout)
	}
	p.check(c.StuckLimit >= 0 && c.StuckLimit <= maxStuckLimit, "stuck_limit", fmt.Sprintf("must be from 1 to %d", maxStuckLimit))
	p.check(c.RenewAfter == 0 || c.RenewAfter >= minRenewAfter && c.RenewAfter <= maxRenewAfter, "renew_after", fmt.Sprintf("must be 0 (never), or from %d to %d", minRenewAfter, maxRenewAfter))
	p.traces(c.Traces, false)
	p.check(c.SealRate >= 0 && c.SealRate <= maxSealRate, "seal_rate", fmt.Sprintf("must be from 1 to %d", maxSealRate))
	p.check(c.PointsPerToken >= 0 && c.PointsPerToken <= maxPointsPerToken, "points_per_token", fmt.Sprintf("must be from 1 to %d", maxPointsPerToken))
	return p.err()
}

// Validate reports everything out of range, a line each. What a command needs
// and is not there, the command reports.
func (c Operator) Validate() error {
	var p problems
	for key, u := range map[string]string{"migrate_url": c.MigrateURL, "ingest_url": c.IngestURL, "registrar_url": c.RegistrarURL, "custodian_url": c.CustodianURL, "auditor_url": c.AuditorURL} {
		if u != "" {
			p.database(key, u)
		}
	}
	for key, cs := range map[string]Cryptoservers{"ingest": c.Ingest, "registrar": c.Registrar, "custodian": c.Custodian, "auditor": c.Auditor} {
		if len(cs.Addresses) > 0 || cs.TLS != (TLS{}) {
			p.cryptoservers(key, cs)
		}
	}
	if c.CustodianURL != "" {
		p.required("feed_copy_file", c.FeedCopyFile)
	}
	if c.CustodianMetricsListen != "" {
		p.listen("custodian_metrics_listen", c.CustodianMetricsListen)
	}
	if c.AuditorMetricsListen != "" {
		p.listen("auditor_metrics_listen", c.AuditorMetricsListen)
	}
	if c.AuditorURL != "" || c.AuditOrigin != "" {
		p.name("audit_origin", c.AuditOrigin)
		p.check(!strings.Contains(c.AuditOrigin, "+"), "audit_origin", "must not contain a plus")
	}
	p.oversight(c.Oversight)
	p.required("profile_file", c.ProfileFile)
	p.required("seal_keys_file", c.SealKeysFile)
	return p.err()
}

// problems collects one line per key.
type problems []string

func (p *problems) add(key, what string) { *p = append(*p, "  "+key+": "+what) }

func (p *problems) check(ok bool, key, what string) {
	if !ok {
		p.add(key, what)
	}
}

func (p problems) err() error {
	if len(p) == 0 {
		return nil
	}
	slices.Sort(p)
	return errors.New(strings.Join(p, "\n"))
}

func (p *problems) required(key, v string) { p.check(v != "", key, "is missing") }

func (p *problems) name(key, v string) {
	ok := v != "" && len(v) <= 64
	for _, r := range v {
		ok = ok && r > ' ' && r < 0x7f
	}
	p.check(ok, key, "must be 1 to 64 printable ASCII characters without spaces")
}

func port(s string) (uint64, bool) {
	n, err := strconv.ParseUint(s, 10, 16)
	return n, err == nil
}

func (p *problems) listen(key, v string) {
	_, ps, err := net.SplitHostPort(v)
	_, ok := port(ps)
	p.check(err == nil && ok, key, "must be host:port (port 0: any free one)")
}

func (p *problems) https(key, v string) {
	u, err := url.Parse(v)
	ok := err == nil && u.Scheme == "https" && u.Host != "" && u.User == nil &&
		u.RawQuery == "" && !u.ForceQuery && !strings.Contains(v, "#")
	p.check(ok, key, "must be an https URL without query or fragment")
}

func (p *problems) database(key, v string) {
	if v == "" {
		p.required(key, v)
	} else if _, err := parseDatabaseURL(v); err != nil {
		p.add(key, err.Error())
	}
}

func (p *problems) tls(key string, t TLS) {
	p.required(key+".certificate_file", t.CertificateFile)
	p.required(key+".key_file", t.KeyFile)
	p.required(key+".ca_file", t.CAFile)
}

// tokens checks every token. A label names one token and one role: roles are
// kept apart by separate tokens.
func (p *problems) tokens(t Tokens) {
	named := map[string]string{}
	token := func(key string, t Token) {
		p.required(key+".label", t.Label)
		p.required(key+".pin_file", t.PINFile)
		p.check(t.Workers >= 0 && t.Workers <= maxWorkers, key+".workers", fmt.Sprintf("must be from 1 to %d", maxWorkers))
		if other, ok := named[t.Label]; ok && t.Label != "" {
			p.add(key+".label", "is that of "+other+", too")
		}
		named[t.Label] = key
	}
	list := func(key string, list []Token) {
		p.check(len(list) <= maxTokens, key, fmt.Sprintf("has %d tokens, at most %d may be", len(list), maxTokens))
		for i, t := range list {
			token(fmt.Sprintf("%s[%d]", key, i), t)
		}
	}
	one := func(key string, t *Token) {
		if t != nil {
			token(key, *t)
		}
	}
	list("tokens.open", t.Open)
	list("tokens.mint", t.Mint)
	list("tokens.rotate", t.Rotate)
	one("tokens.seal", t.Seal)
	one("tokens.sign", t.Sign)
	p.check(len(named) > 0, "tokens", "name the token of at least one role: open, seal, mint, rotate, sign")
}

func (p *problems) cryptoservers(key string, c Cryptoservers) {
	p.check(len(c.Addresses) > 0, key+".addresses", "is missing")
	for i, a := range c.Addresses {
		host, ps, err := net.SplitHostPort(a)
		n, ok := port(ps)
		at := fmt.Sprintf("%s.addresses[%d]", key, i)
		p.check(err == nil && host != "" && ok && n != 0, at, "must be host:port")
		p.check(!slices.Contains(c.Addresses[:i], a), at, "is repeated")
	}
	p.tls(key+".tls", c.TLS)
}

// traces checks where spans go, and who says how many.
func (p *problems) traces(t Traces, begins bool) {
	if t == (Traces{}) {
		return
	}
	host, ps, err := net.SplitHostPort(t.Endpoint)
	n, ok := port(ps)
	p.check(err == nil && host != "" && ok && n != 0, "traces.endpoint", "must be host:port")
	if t.TLS != nil {
		p.tls("traces.tls", *t.TLS)
	} else {
		ip := net.ParseIP(host)
		p.check(host == "localhost" || ip != nil && ip.IsLoopback(), "traces.tls", "is missing: spans go in the clear to a loopback address only")
	}
	if begins {
		p.check(t.Share > 0 && t.Share <= 1, "traces.share", "must be above 0 and at most 1")
	} else {
		p.check(t.Share == 0, "traces.share", "is the gateway's: what belongs to a traced request is traced")
	}
}

func (p *problems) issuers(list []Issuer, mayFetch bool) {
	p.check(len(list) > 0, "issuers", "name at least one accepted issuer")
	staff := false
	for i, is := range list {
		key := fmt.Sprintf("issuers[%d]", i)
		p.https(key+".url", is.URL)
		p.required(key+".audience", is.Audience)
		same := slices.ContainsFunc(list[:i], func(o Issuer) bool { return o.URL == is.URL })
		p.check(!same, key+".url", "is repeated")
		if is.Staff {
			p.check(!staff, key+".staff", "is set on another issuer, too: only Kluis' own names employees")
			p.check(is.JWKSURL == "", key+".staff", "whoever answers at jwks_url could name any employee: pin the keys with jwks_file")
			staff = true
		}
		switch {
		case !mayFetch:
			p.check(is.JWKSURL == "" && is.CAFile == "", key, "a cryptoserver never fetches keys: pin them with jwks_file")
			p.required(key+".jwks_file", is.JWKSFile)
		case is.JWKSURL != "":
			p.check(is.JWKSFile == "", key, "give jwks_file or jwks_url, not both")
			p.https(key+".jwks_url", is.JWKSURL)
			p.required(key+".ca_file", is.CAFile)
		default:
			p.check(is.JWKSFile != "", key, "give jwks_file or jwks_url")
			p.check(is.CAFile == "", key+".ca_file", "is for jwks_url only")
		}
		if is.MaxLifetime != 0 {
			p.duration(key+".max_lifetime", is.MaxLifetime, maxTokenLifetime)
		}
	}
}

// gln looks at the digits; who uses it checks the check digit.
func (p *problems) gln(key, v string) {
	p.check(len(v) == 13 && strings.Trim(v, "0123456789") == "", key, "must be a GLN of 13 digits")
}

// operator checks that whose employees count is said if and only if it matters.
func (p *problems) operator(gln string, issuers []Issuer, providers []IdentityProvider) {
	staff := slices.ContainsFunc(issuers, func(i Issuer) bool { return i.Staff })
	switch {
	case staff || len(providers) > 0:
		p.gln("operator_gln", gln)
	case gln != "":
		p.add("operator_gln", "says whose employees there are, but no issuer's tokens may name any: set staff on Kluis' own issuer")
	}
}

// limits checks those that are said; which go together, the gateway checks.
func (p *problems) limits(key string, l Limits) {
	rate := func(key string, r Rate) {
		p.check(r.RequestsPerSecond >= 0 && r.RequestsPerSecond <= maxLimit, key+".requests_per_second", fmt.Sprintf("must be more than 0 and at most %d", maxLimit))
		p.check(r.Burst >= 0 && r.Burst <= maxLimit, key+".burst", fmt.Sprintf("must be from 1 to %d", maxLimit))
	}
	rate(key, l.Rate)
	p.check(l.UnrelatedPerSecond >= 0 && l.UnrelatedPerSecond <= maxLimit, key+".unrelated_per_second", fmt.Sprintf("must be more than 0 and at most %d", maxLimit))
	for gln, r := range l.Suppliers {
		at := key + ".suppliers." + gln
		p.gln(at, gln)
		rate(at, r)
		p.check(r.RequestsPerSecond > 0 && r.Burst > 0, at, "needs requests_per_second and burst")
	}
	for name, n := range map[string]int{
		"streams": l.Streams, "unrelated_burst": l.UnrelatedBurst, "turns": l.Turns, "turns_each": l.TurnsEach, "queue": l.Queue, "queue_all": l.QueueAll,
		"connections": l.Connections, "connections_each": l.ConnectionsEach, "handshakes": l.Handshakes,
	} {
		p.check(n >= 0 && n <= maxLimit, key+"."+name, fmt.Sprintf("must be from 1 to %d", maxLimit))
	}
}

func (p *problems) identityProviders(list []IdentityProvider) {
	for i, ip := range list {
		key := fmt.Sprintf("identity_providers[%d]", i)
		p.https(key+".url", ip.URL)
		p.required(key+".audience", ip.Audience)
		same := slices.ContainsFunc(list[:i], func(o IdentityProvider) bool { return o.URL == ip.URL })
		p.check(!same, key+".url", "is repeated")
		p.required(key+".jwks_file", ip.JWKSFile)
		p.required(key+".role_claim", ip.RoleClaim)
		p.roles(key+".roles", ip.Roles)
		if ip.MaxAge != 0 {
			p.duration(key+".max_age", ip.MaxAge, maxMaxAge)
		}
	}
}

func (p *problems) duration(key string, d Duration, most time.Duration) {
	p.check(d > 0 && time.Duration(d) <= most, key, fmt.Sprintf("must be longer than 0s and at most %s", most))
}
