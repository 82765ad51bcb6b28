package authn

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/asn1"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"
)

func TestVerifyAccepts(t *testing.T) {
	t.Parallel()
	for name, change := range map[string]func(*world, *spec){
		"own, ES256":              func(*world, *spec) {},
		"own, second key":         func(w *world, s *spec) { s.header["kid"], s.key = w.kid2, w.es2 },
		"external, PS256":         func(w *world, s *spec) { w.external(s, "rsa-1") },
		"external, EdDSA":         func(w *world, s *spec) { w.external(s, "ed-1") },
		"external, 15 minutes":    func(w *world, s *spec) { w.external(s, "ed-1"); s.claims["exp"] = w.now.Unix() + 900 },
		"full media type":         func(_ *world, s *spec) { s.header["typ"] = "application/at+jwt" },
		"audience array of one":   func(_ *world, s *spec) { s.claims["aud"] = []string{audience} },
		"no scope":                func(_ *world, s *spec) { delete(s.claims, "scope") },
		"empty scope":             func(_ *world, s *spec) { s.claims["scope"] = "" },
		"unknown claims":          func(_ *world, s *spec) { s.claims["acr"] = map[string]any{"a": []any{1, "b", nil}} },
		"unknown header":          func(_ *world, s *spec) { s.header["x5t"] = "abc" },
		"from 10 s in the future": func(w *world, s *spec) { s.claims["iat"] = w.now.Unix() + 10; s.claims["nbf"] = w.now.Unix() + 10 },
		"its last second":         func(w *world, s *spec) { s.claims["iat"] = w.now.Unix() - 299; s.claims["exp"] = w.now.Unix() + 1 },
		"space inside JSON": func(w *world, s *spec) {
			b, _ := json.MarshalIndent(s.claims, "\t", " ")
			s.rawClaims = " " + string(b) + "\n"
		},
		"cnf with other members":   func(_ *world, s *spec) { s.claims["cnf"].(map[string]any)["jkt"] = "x" },
		"a claim that looks alike": func(_ *world, s *spec) { s.claims["EXP"] = 1 },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			s := w.newSpec()
			change(w, s)
			raw := s.sign(t)
			for range 2 { // first, and from the cache
				tok, err := w.verifier.Verify(t.Context(), raw, leaf)
				if err != nil {
					t.Fatal(err)
				}
				if tok.Client().String() != supplier || tok.Thumbprint() != leaf || tok.Issuer() != s.claims["iss"] ||
					tok.ExpiresAt().Unix() != s.claims["exp"] || tok.ID() == [32]byte{} {
					t.Errorf("token %+v", tok)
				}
			}
		})
	}
}

// TestVerifyRefuses attacks. Every case starts from a token that is accepted
// and changes one thing; unless it says otherwise the changed token is signed
// properly, so that nothing but the guard under test can refuse it.
func TestVerifyRefuses(t *testing.T) {
	t.Parallel()
	type change = func(*world, *spec)
	claim := func(name string, v any) change { return func(_ *world, s *spec) { s.claims[name] = v } }
	without := func(name string) change { return func(_ *world, s *spec) { delete(s.claims, name) } }
	head := func(name string, v any) change { return func(_ *world, s *spec) { s.header[name] = v } }
	sec := func(name string, offset int64) change {
		return func(w *world, s *spec) { s.claims[name] = w.now.Unix() + offset }
	}
	after := func(f func(string) string) change { return func(_ *world, s *spec) { s.after = f } }
	rawClaims := func(f func(string) string) change {
		return func(_ *world, s *spec) {
			b, err := json.Marshal(s.claims)
			if err != nil {
				panic(err)
			}
			s.rawClaims = f(string(b))
		}
	}
	add := func(member string) change {
		return rawClaims(func(s string) string { return strings.TrimSuffix(s, "}") + "," + member + "}" })
	}
	signature := func(f func([]byte) []byte) change {
		return after(func(raw string) string {
			i := strings.LastIndexByte(raw, '.')
			sig, err := base64.RawURLEncoding.DecodeString(raw[i+1:])
			if err != nil {
				panic(err)
			}
			return raw[:i+1] + b64(f(sig))
		})
	}
	hmacWith := func(f func(*world) []byte) change {
		return func(w *world, s *spec) {
			s.header["alg"], s.method, s.key = "HS256", jwt.SigningMethodHS256, f(w)
		}
	}

	for name, c := range map[string]struct {
		change change
		reason string
	}{
		// Algorithm and key.
		"alg none": {func(_ *world, s *spec) {
			s.header["alg"], s.method, s.key = "none", jwt.SigningMethodNone, jwt.UnsafeAllowNoneSignatureType
		}, "wrong_algorithm"},
		"alg none, signature of ES256": {head("alg", "none"), "wrong_algorithm"},
		"alg None":                     {head("alg", "None"), "wrong_algorithm"},
		"alg missing":                  {func(_ *world, s *spec) { delete(s.header, "alg") }, "wrong_algorithm"},
		"alg null":                     {head("alg", nil), "wrong_algorithm"},
		"alg of another case":          {head("alg", "es256"), "wrong_algorithm"},
		"ES256 with an empty signature": {after(func(raw string) string {
			return raw[:strings.LastIndexByte(raw, '.')+1]
		}), "wrong_signature"},
		"HS256, public key as PEM": {hmacWith(func(w *world) []byte {
			der, _ := x509.MarshalPKIXPublicKey(&w.es.PublicKey)
			return pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})
		}), "wrong_algorithm"},
		"HS256, public key as DER": {hmacWith(func(w *world) []byte {
			der, _ := x509.MarshalPKIXPublicKey(&w.es.PublicKey)
			return der
		}), "wrong_algorithm"},
		"HS256, JWK set": {hmacWith(func(w *world) []byte { j, _ := JWKS(&w.es.PublicKey); return j }), "wrong_algorithm"},
		"RS256 with the RSA key": {func(w *world, s *spec) {
			w.external(s, "rsa-1")
			s.header["alg"], s.method = "RS256", jwt.SigningMethodRS256
		}, "wrong_algorithm"},
		"RS256 said to be PS256": {func(w *world, s *spec) { w.external(s, "rsa-1"); s.method = jwt.SigningMethodRS256 }, "wrong_signature"},
		"PS384": {func(w *world, s *spec) {
			w.external(s, "rsa-1")
			s.header["alg"], s.method = "PS384", jwt.SigningMethodPS384
		}, "wrong_algorithm"},
		"ES256 with an RSA kid": {func(w *world, s *spec) { w.external(s, "rsa-1"); s.header["alg"] = "ES256" }, "wrong_algorithm"},
		"kid missing":           {func(_ *world, s *spec) { delete(s.header, "kid") }, "no_kid"},
		"kid empty":             {head("kid", ""), "no_kid"},
		"kid a number":          {head("kid", 1), "no_kid"},
		"kid unknown":           {head("kid", "nobody"), "unknown_kid"},
		"kid a path":            {head("kid", "../../../dev/null"), "unknown_kid"},
		"kid of another key":    {func(w *world, s *spec) { s.header["kid"] = w.kid2 }, "wrong_signature"},
		"kid of another issuer": {func(w *world, s *spec) { s.header["kid"] = "ed-1" }, "unknown_kid"},
		"signed by a stranger": {func(_ *world, s *spec) {
			s.key, _ = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		}, "wrong_signature"},
		"another issuer's key, own iss": {func(w *world, s *spec) {
			w.external(s, "ed-1")
			s.claims["iss"] = ownIssuer
		}, "unknown_kid"},
		"key in the header (jwk)": {func(w *world, s *spec) {
			k, _ := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
			j, _ := newJWK(&k.PublicKey)
			s.header["jwk"], s.key = j, k
		}, "key_in_header"},
		"key by URL (jku)":      {head("jku", "https://evil.example/jwks"), "key_in_header"},
		"key by URL (x5u)":      {head("x5u", "https://evil.example/crt"), "key_in_header"},
		"key in a chain (x5c)":  {head("x5c", []string{"MII"}), "key_in_header"},
		"critical header":       {head("crit", []string{"exp"}), "critical_header"},
		"critical header empty": {head("crit", []string{}), "critical_header"},
		"critical header null":  {head("crit", nil), "critical_header"},
		"unencoded payload": {func(_ *world, s *spec) {
			s.header["b64"], s.header["crit"] = false, []string{"b64"}
		}, "critical_header"},

		// Type.
		"typ JWT":             {head("typ", "JWT"), "wrong_type"},
		"typ of an id token":  {head("typ", "id_token+jwt"), "wrong_type"},
		"typ of another case": {head("typ", "AT+JWT"), "wrong_type"},
		"typ with a space":    {head("typ", "at+jwt "), "wrong_type"},
		"typ missing":         {func(_ *world, s *spec) { delete(s.header, "typ") }, "wrong_type"},
		"typ in an array":     {head("typ", []string{"at+jwt"}), "wrong_type"},

		// Issuer and audience.
		"iss unknown":           {claim("iss", "https://evil.example"), "wrong_issuer"},
		"iss with a slash":      {claim("iss", ownIssuer+"/"), "wrong_issuer"},
		"iss of another case":   {claim("iss", strings.ToUpper(ownIssuer)), "wrong_issuer"},
		"iss missing":           {without("iss"), "wrong_issuer"},
		"iss in an array":       {claim("iss", []string{ownIssuer}), "wrong_issuer"},
		"aud another":           {claim("aud", "urn:other"), "wrong_audience"},
		"aud a prefix":          {claim("aud", audience+":x"), "wrong_audience"},
		"aud missing":           {without("aud"), "wrong_audience"},
		"aud null":              {claim("aud", nil), "wrong_audience"},
		"aud empty":             {claim("aud", ""), "wrong_audience"},
		"aud array, others too": {claim("aud", []string{audience, "urn:other"}), "wrong_audience"},
		"aud array, twice":      {claim("aud", []string{audience, audience}), "wrong_audience"},
		"aud array of another":  {claim("aud", []string{"urn:other"}), "wrong_audience"},
		"aud array empty":       {claim("aud", []string{}), "wrong_audience"},
		"aud array in array":    {claim("aud", [][]string{{audience}}), "wrong_audience"},

		// Time.
		"expired a second ago":   {func(w *world, s *spec) { sec("iat", -200)(w, s); sec("exp", -1)(w, s) }, "expired"},
		"expires now":            {func(w *world, s *spec) { sec("iat", -200)(w, s); sec("exp", 0)(w, s) }, "expired"},
		"exp missing":            {without("exp"), "no_expiry"},
		"exp null":               {claim("exp", nil), "no_expiry"},
		"exp a string":           {claim("exp", "9999999999"), "no_expiry"},
		"exp zero":               {claim("exp", 0), "no_expiry"},
		"exp negative":           {claim("exp", -1), "no_expiry"},
		"exp huge":               {claim("exp", json.Number("99999999999999999999")), "no_expiry"},
		"exp exponent":           {claim("exp", json.Number("1e12")), "no_expiry"},
		"exp fraction":           {claim("exp", json.Number("1774785900.5")), "no_expiry"},
		"lives 301 s":            {sec("exp", 301), "lives_too_long"},
		"lives for years":        {claim("exp", 1<<39), "lives_too_long"},
		"external, 901 s":        {func(w *world, s *spec) { w.external(s, "rsa-1"); sec("exp", 901)(w, s) }, "lives_too_long"},
		"expires before issued":  {func(w *world, s *spec) { sec("iat", 8)(w, s); sec("exp", 5)(w, s) }, "lives_too_long"},
		"iat missing":            {without("iat"), "no_time_of_issue"},
		"iat 11 s in the future": {sec("iat", 11), "issued_in_the_future"},
		"nbf 11 s in the future": {sec("nbf", 11), "not_yet_valid"},
		"nbf a string":           {claim("nbf", "0"), "not_yet_valid"},

		// Subject, client, identifier.
		"sub missing":                {without("sub"), "subject_not_a_gln"},
		"sub a name":                 {claim("sub", "admin"), "subject_not_a_gln"},
		"sub bad check digit":        {claim("sub", "8712423010209"), "subject_not_a_gln"},
		"sub a number":               {claim("sub", 8712423010208), "subject_not_a_gln"},
		"sub with a space":           {claim("sub", supplier+" "), "subject_not_a_gln"},
		"client_id missing":          {without("client_id"), "client_is_not_subject"},
		"client_id another":          {claim("client_id", other), "client_is_not_subject"},
		"jti missing":                {without("jti"), "no_jti"},
		"jti empty":                  {claim("jti", ""), "no_jti"},
		"jti a number":               {claim("jti", 1), "no_jti"},
		"scope an array":             {claim("scope", []string{ScopeReadings}), "malformed_scope"},
		"scope null":                 {claim("scope", nil), "malformed_scope"},
		"scope with two spaces":      {claim("scope", "a  b"), "malformed_scope"},
		"scope with a quote":         {claim("scope", `a"b`), "malformed_scope"},
		"cnf missing":                {without("cnf"), "not_bound_to_a_certificate"},
		"cnf null":                   {claim("cnf", nil), "not_bound_to_a_certificate"},
		"cnf a string":               {claim("cnf", b64(leaf[:])), "not_bound_to_a_certificate"},
		"cnf of a key (jkt)":         {claim("cnf", map[string]string{"jkt": b64(leaf[:])}), "not_bound_to_a_certificate"},
		"cnf of SHA-1":               {claim("cnf", map[string]string{"x5t": b64(leaf[:20])}), "not_bound_to_a_certificate"},
		"cnf of another case":        {claim("cnf", map[string]string{"x5t#s256": b64(leaf[:])}), "not_bound_to_a_certificate"},
		"cnf empty":                  {claim("cnf", map[string]string{"x5t#S256": ""}), "not_bound_to_a_certificate"},
		"cnf short":                  {claim("cnf", map[string]string{"x5t#S256": b64(leaf[:31])}), "not_bound_to_a_certificate"},
		"cnf long":                   {claim("cnf", map[string]string{"x5t#S256": b64(append(leaf[:], 0))}), "not_bound_to_a_certificate"},
		"cnf padded":                 {claim("cnf", map[string]string{"x5t#S256": b64(leaf[:]) + "="}), "not_bound_to_a_certificate"},
		"cnf in hex":                 {claim("cnf", map[string]string{"x5t#S256": fmt.Sprintf("%x", leaf)}), "not_bound_to_a_certificate"},
		"cnf of another certificate": {claim("cnf", map[string]string{"x5t#S256": b64(otherLeaf[:])}), "bound_to_another_certificate"},

		// JSON.
		"exp twice":                {add(`"exp":9999999999`), "malformed_claims"},
		"sub twice, equal":         {add(`"sub":"` + supplier + `"`), "malformed_claims"},
		"sub twice, by escape":     {add(`"\u0073ub":"` + other + `"`), "malformed_claims"},
		"unknown claim twice":      {add(`"a":1,"a":1`), "malformed_claims"},
		"cnf member twice":         {add(`"x":{"y":1,"y":2}`), "malformed_claims"},
		"member twice in an array": {add(`"x":[[{"y":1,"y":2}]]`), "malformed_claims"},
		"arrays too deep":          {add(`"x":` + strings.Repeat("[", 20) + strings.Repeat("]", 20)), "malformed_claims"},
		"objects too deep":         {add(`"x":` + strings.Repeat(`{"y":`, 20) + "1" + strings.Repeat("}", 20)), "malformed_claims"},
		"claims, trailing text":    {rawClaims(func(s string) string { return s + "x" }), "malformed_claims"},
		"claims, trailing object":  {rawClaims(func(s string) string { return s + "{}" }), "malformed_claims"},
		"claims cut":               {rawClaims(func(s string) string { return s[:len(s)-1] }), "malformed_claims"},
		"claims in an array":       {rawClaims(func(s string) string { return "[" + s + "]" }), "malformed_claims"},
		"claims null":              {rawClaims(func(string) string { return "null" }), "malformed_claims"},
		"claims with a NUL":        {rawClaims(func(s string) string { return s + "\x00" }), "malformed_claims"},
		"claims, invalid UTF-8":    {add("\"x\":\"\xff\""), "malformed_claims"},
		"claims, byte-order mark":  {rawClaims(func(s string) string { return "\ufeff" + s }), "malformed_claims"},
		"claims, comma after last": {rawClaims(func(s string) string { return strings.TrimSuffix(s, "}") + ",}" }), "malformed_claims"},
		"header, alg twice": {func(w *world, s *spec) {
			s.rawHeader = `{"typ":"at+jwt","alg":"none","kid":"` + w.kid + `","alg":"ES256"}`
		}, "malformed_header"},
		"header, kid twice": {func(w *world, s *spec) {
			s.rawHeader = `{"typ":"at+jwt","kid":"x","alg":"ES256","kid":"` + w.kid + `"}`
		}, "malformed_header"},
		"header, trailing": {func(w *world, s *spec) { s.rawHeader = `{"typ":"at+jwt","alg":"ES256","kid":"` + w.kid + `"}{}` }, "malformed_header"},

		// Shape.
		"empty":                   {after(func(string) string { return "" }), "malformed"},
		"one part":                {after(func(raw string) string { return strings.ReplaceAll(raw, ".", "") }), "malformed"},
		"two parts":               {after(func(raw string) string { return raw[:strings.LastIndexByte(raw, '.')] }), "malformed"},
		"four parts":              {after(func(raw string) string { return raw + ".e30" }), "malformed"},
		"a dot at the end":        {after(func(raw string) string { return raw + "." }), "malformed"},
		"encrypted, five parts":   {after(func(raw string) string { return raw + ".e30.e30" }), "malformed"},
		"trailing garbage":        {after(func(raw string) string { return raw + "!" }), "malformed"},
		"trailing character":      {after(func(raw string) string { return raw + "A" }), "wrong_signature"},
		"trailing line end":       {after(func(raw string) string { return raw + "\n" }), "malformed"},
		"line end inside":         {after(func(raw string) string { return raw[:10] + "\r\n" + raw[10:] }), "malformed"},
		"space before":            {after(func(raw string) string { return " " + raw }), "malformed"},
		"padding":                 {after(func(raw string) string { return raw + "==" }), "malformed"},
		"standard base64":         {after(func(raw string) string { i := strings.LastIndexByte(raw, '.'); return raw[:i+1] + "+/" + raw[i+3:] }), "malformed"},
		"spare bits in signature": {after(spareBits), "malformed"},
		"oversized":               {claim("x", strings.Repeat("x", MaxTokenLength)), "oversized"},
		"header and claims swapped": {after(func(raw string) string {
			p := strings.Split(raw, ".")
			return p[1] + "." + p[0] + "." + p[2]
		}), "wrong_type"},

		// Signature.
		"signature bit flipped": {signature(func(b []byte) []byte { b[5] ^= 1; return b }), "wrong_signature"},
		"signature in DER": {signature(func(b []byte) []byte {
			der, _ := asn1.Marshal(struct{ R, S *big.Int }{new(big.Int).SetBytes(b[:32]), new(big.Int).SetBytes(b[32:])})
			return der
		}), "wrong_signature"},
		"signature short": {signature(func(b []byte) []byte { return b[:63] }), "wrong_signature"},
		"signature long":  {signature(func(b []byte) []byte { return append(b, 0) }), "wrong_signature"},
		"signature with zeros": {signature(func(b []byte) []byte {
			return append(append(make([]byte, 1), b[:32]...), append(make([]byte, 1), b[32:]...)...)
		}), "wrong_signature"},
		"signature of nothing": {signature(func([]byte) []byte { return make([]byte, 64) }), "wrong_signature"},
		"signature, r and s":   {signature(func(b []byte) []byte { return append(append([]byte{}, b[32:]...), b[:32]...) }), "wrong_signature"},
		"signature, r = s = order": {signature(func([]byte) []byte {
			n := elliptic.P256().Params().N.Bytes()
			return append(append([]byte{}, n...), n...)
		}), "wrong_signature"},
		"a claim changed after signing": {after(func(raw string) string {
			p := strings.Split(raw, ".")
			b, _ := base64.RawURLEncoding.DecodeString(p[1])
			return p[0] + "." + b64([]byte(strings.ReplaceAll(string(b), supplier, other))) + "." + p[2]
		}), "wrong_signature"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			s := w.newSpec()
			if _, err := w.verifier.Verify(t.Context(), s.sign(t), leaf); err != nil {
				t.Fatalf("the token to start from: %v", err)
			}
			c.change(w, s)
			raw := s.sign(t)
			for range 2 { // a refusal is not remembered as anything else
				_, err := w.verifier.Verify(t.Context(), raw, leaf)
				refused(t, err, ErrInvalidToken, c.reason)
				if status, challenge := Challenge(err); status != http.StatusUnauthorized || challenge != `Bearer realm="kluis", error="invalid_token"` {
					t.Errorf("the caller is told %d %s", status, challenge)
				}
			}
		})
	}
}

// spareBits sets the unused low bits of the last character: another text for
// the same bytes, which a lenient decoder accepts.
func spareBits(raw string) string {
	const alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
	i := strings.IndexByte(alphabet, raw[len(raw)-1])
	return raw[:len(raw)-1] + string(alphabet[i|1])
}

// TestSignatureTwin states the one malleability that ECDSA has: (r, n-s)
// verifies where (r, s) does. It gains nothing: who, which token and how long
// are the same, and the token's id with them.
func TestSignatureTwin(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	raw := w.newSpec().sign(t)
	i := strings.LastIndexByte(raw, '.')
	sig, err := base64.RawURLEncoding.DecodeString(raw[i+1:])
	if err != nil {
		t.Fatal(err)
	}
	twin := new(big.Int).Sub(elliptic.P256().Params().N, new(big.Int).SetBytes(sig[32:]))
	twin.FillBytes(sig[32:])
	a, err := w.verifier.Verify(t.Context(), raw, leaf)
	if err != nil {
		t.Fatal(err)
	}
	b, err := w.verifier.Verify(t.Context(), raw[:i+1]+b64(sig), leaf)
	if err != nil {
		t.Fatal(err)
	}
	if a.ID() != b.ID() || a.Client() != b.Client() || a.ExpiresAt() != b.ExpiresAt() || a.Thumbprint() != b.Thumbprint() {
		t.Errorf("%+v and %+v", a, b)
	}
}

func TestVerifyDetached(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	raw := w.newSpec().sign(t)
	tok, err := w.verifier.VerifyDetached(t.Context(), raw)
	if err != nil || tok.Thumbprint() != leaf {
		t.Fatalf("%+v, %v", tok, err)
	}
	// It is in the cache now, which must not spare the comparison.
	_, err = w.verifier.Verify(t.Context(), raw, otherLeaf)
	refused(t, err, ErrInvalidToken, "bound_to_another_certificate")
	s := w.newSpec()
	delete(s.claims, "cnf")
	_, err = w.verifier.VerifyDetached(t.Context(), s.sign(t))
	refused(t, err, ErrInvalidToken, "not_bound_to_a_certificate")
}

func TestCacheEndsWithTheToken(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	s := w.newSpec()
	s.claims["iat"] = noon.Unix() + 9 // as from a clock that is ahead
	s.claims["exp"] = noon.Unix() + 200
	raw := s.sign(t)
	check := func(at time.Time, reason string) {
		t.Helper()
		w.now = at
		_, err := w.verifier.Verify(t.Context(), raw, leaf)
		if reason == "" && err != nil {
			t.Errorf("at %s: %v", at, err)
		} else if reason != "" {
			refused(t, err, ErrInvalidToken, reason)
		}
	}
	exp := noon.Add(200 * time.Second)
	check(noon, "")
	check(exp.Add(-time.Nanosecond), "")
	check(noon.Add(-2*time.Second), "issued_in_the_future") // the clock went back
	check(noon, "")
	check(exp, "expired")
	check(exp.Add(time.Hour), "expired")
	if n := w.verifier.cache.Len(); n != 0 {
		t.Errorf("%d tokens remembered after their end", n)
	}
}

func TestCacheIsBoundedAndHoldsNoRefusals(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	for i := range 100 {
		if _, err := w.verifier.VerifyDetached(t.Context(), fmt.Sprint("no token ", i)); err == nil {
			t.Fatal("accepted")
		}
	}
	if n := w.verifier.cache.Len(); n != 0 {
		t.Errorf("%d refusals remembered", n)
	}
	for i := range cacheSize + 1 {
		w.verifier.cache.Add([32]byte{byte(i), byte(i >> 8)}, &Token{})
	}
	if n := w.verifier.cache.Len(); n != cacheSize {
		t.Errorf("%d remembered, want at most %d", n, cacheSize)
	}
}

func TestNewVerifierRefuses(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	good := w.verifier.issuers[ownIssuer]
	for name, list := range map[string][]Issuer{
		"none":        nil,
		"no URL":      {{"", audience, good.Keys, time.Minute, nil}},
		"no audience": {{ownIssuer, "", good.Keys, time.Minute, nil}},
		"no keys":     {{ownIssuer, audience, nil, time.Minute, nil}},
		"no lifetime": {{ownIssuer, audience, good.Keys, 0, nil}},
		"twice":       {good, good},
	} {
		if _, err := NewVerifier(time.Now, list...); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

func TestChallenge(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		err    error
		status int
		header string
	}{
		{invalid("x"), 401, `Bearer realm="kluis", error="invalid_token"`},
		{fmt.Errorf("wrapped: %w", invalid("x")), 401, `Bearer realm="kluis", error="invalid_token"`},
		{&Error{kind: ErrNoToken}, 401, `Bearer realm="kluis"`},
		{&Error{kind: ErrInsufficientScope, scope: ScopeReadings}, 403, `Bearer realm="kluis", error="insufficient_scope", scope="readings:read"`},
		{&Error{kind: ErrUnavailable}, 503, ""},
		{errors.New("other"), 500, ""},
	} {
		if status, header := Challenge(c.err); status != c.status || header != c.header {
			t.Errorf("%v: %d %s", c.err, status, header)
		}
	}
}

func FuzzVerify(f *testing.F) {
	w := newWorld(f)
	good := w.newSpec().sign(f)
	s := w.newSpec()
	w.external(s, "ed-1")
	ed := s.sign(f)
	s = w.newSpec()
	w.external(s, "rsa-1")
	ps := s.sign(f)
	s = w.newSpec()
	s.header["alg"], s.method, s.key = "none", jwt.SigningMethodNone, jwt.UnsafeAllowNoneSignatureType
	for _, raw := range []string{good, ed, ps, s.sign(f), spareBits(good), good + "\n", "", "..", "e30.e30.e30", strings.Repeat("[", 1000)} {
		f.Add(raw)
	}
	signed := func(raw string) string { return raw[:strings.LastIndexByte(raw, '.')] }
	f.Fuzz(func(t *testing.T, raw string) {
		tok, err := w.verifier.Verify(t.Context(), raw, leaf)
		if err != nil {
			if tok != nil || !errors.Is(err, ErrInvalidToken) {
				t.Fatalf("%v, %v", tok, err)
			}
			return
		}
		switch raw {
		case good, ed, ps:
			return
		}
		// Nothing else is accepted but the twin of an ECDSA signature.
		if signed(raw) != signed(good) {
			t.Fatalf("accepted: %q", raw)
		}
	})
}

// FuzzClaims puts arbitrary JSON under a good signature: no panic, and what is
// accepted says what encoding/json reads too.
func FuzzClaims(f *testing.F) {
	w := newWorld(f)
	b, err := json.Marshal(w.newSpec().claims)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	if b, err = json.Marshal(w.newSpec().employee().claims); err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Add([]byte(`{"exp":1,"exp":2}`))
	f.Add([]byte(`{"cnf":{"x5t#S256":[{"a":1}]}}`))
	f.Fuzz(func(t *testing.T, payload []byte) {
		c, err := parseClaims(payload)
		if err != nil {
			if !errors.Is(err, ErrInvalidToken) {
				t.Fatal(err)
			}
			return
		}
		var m map[string]any
		if err := json.Unmarshal(payload, &m); err != nil {
			t.Fatalf("encoding/json refuses %q: %v", payload, err)
		}
		if c.employee != nil {
			if m["client_id"] != c.token.client.String() || m["sub"] != c.employee.subject || m["scope"] != ScopeStaff || m["sub"] == m["client_id"] ||
				!slices.Equal(m["roles"].([]any), []any{c.employee.role.String()}) {
				t.Fatalf("%q read as %+v", payload, c)
			}
			return
		}
		_, roles := m["roles"]
		_, errand := m["authorization_details"]
		if roles || errand || slices.Contains(c.token.scopes, ScopeStaff) || m["sub"] != c.token.client.String() || m["client_id"] != m["sub"] || m["iss"] != c.token.issuer || m["exp"] != float64(c.token.expires.Unix()) {
			t.Fatalf("%q read as %+v", payload, c)
		}
	})
}

func BenchmarkVerifyFirst(b *testing.B) {
	w := newWorld(b)
	for _, kid := range []string{"ES256", "rsa-1", "ed-1"} {
		s := w.newSpec()
		w.external(s, kid)
		if kid == "ES256" {
			s = w.newSpec()
		}
		raw := s.sign(b)
		b.Run(s.method.Alg(), func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				w.verifier.cache.Purge()
				if _, err := w.verifier.Verify(b.Context(), raw, leaf); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkVerifyEmployeeFirst(b *testing.B) {
	w := newWorld(b)
	s := w.newSpec().employee()
	s.claims["authorization_details"] = json.RawMessage(readingsJSON)
	raw := s.sign(b)
	b.ReportAllocs()
	for b.Loop() {
		w.verifier.cache.Purge()
		if _, err := w.verifier.Verify(b.Context(), raw, leaf); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkVerifyCached(b *testing.B) {
	w := newWorld(b)
	raw := w.newSpec().sign(b)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := w.verifier.Verify(b.Context(), raw, leaf); err != nil {
			b.Fatal(err)
		}
	}
}
