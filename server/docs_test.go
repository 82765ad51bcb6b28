package server

import (
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/go-chi/chi/v5"
	"github.com/prometheus/client_golang/prometheus"

	"kluis/openapi"
)

// docsHandler serves the documentation alone, as the gateway does.
func docsHandler(t *testing.T) http.Handler {
	t.Helper()
	d, err := newDocs()
	if err != nil {
		t.Fatal(err)
	}
	s := &Server{log: slog.New(slog.DiscardHandler), docs: d}
	if s.metrics, err = newMetrics(prometheus.NewRegistry()); err != nil {
		t.Fatal(err)
	}
	mux := chi.NewRouter()
	mux.Use(s.observe)
	d.route(mux)
	s.handler = mux
	return s.ProbeServer(http.NotFoundHandler()).Handler
}

func getDocs(t *testing.T, h http.Handler, path string, header ...string) *http.Response {
	t.Helper()
	r := httptest.NewRequest(http.MethodGet, path, nil)
	for i := 0; i < len(header); i += 2 {
		r.Header.Add(header[i], header[i+1])
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return w.Result()
}

func bodyOf(t *testing.T, r *http.Response) []byte {
	t.Helper()
	b, err := io.ReadAll(r.Body)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// What was vendored is what was published.
func TestRedocIsUnchanged(t *testing.T) {
	t.Parallel()
	sums, err := os.ReadFile("docs/redoc/SHA256SUMS")
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for line := range strings.Lines(string(sums)) {
		want, name, ok := strings.Cut(strings.TrimSpace(line), "  ")
		if !ok {
			t.Fatalf("line %q", line)
		}
		b, err := os.ReadFile("docs/redoc/" + name)
		if err != nil {
			t.Fatal(err)
		}
		if got := sha256.Sum256(b); hex.EncodeToString(got[:]) != want {
			t.Errorf("%s is not what SHA256SUMS says", name)
		}
		n++
	}
	if n != 3 {
		t.Errorf("%d files have a checksum, want 3", n)
	}
}

func TestDocsPage(t *testing.T) {
	t.Parallel()
	h := docsHandler(t)
	nonces := map[string]bool{}
	for range 3 {
		res := getDocs(t, h, "/docs")
		page := string(bodyOf(t, res))
		policy := res.Header.Get("Content-Security-Policy")
		if res.StatusCode != 200 || !strings.HasPrefix(policy, "default-src 'none'; ") {
			t.Fatalf("%d, policy %q", res.StatusCode, policy)
		}
		for _, weak := range []string{"unsafe", "*", "http:", "https:", "blob:", "strict-dynamic"} {
			if strings.Contains(policy, weak) {
				t.Errorf("the policy allows %s", weak)
			}
		}
		scripts, _, _ := strings.Cut(policy[strings.Index(policy, "script-src"):], ";")
		if scripts != "script-src 'self'" {
			t.Errorf("%s", scripts)
		}
		nonce := regexp.MustCompile(`'nonce-([A-Z2-7]{26})'`).FindStringSubmatch(policy)
		if nonce == nil || !strings.Contains(page, `nonce="`+nonce[1]+`"`) || nonces[nonce[1]] {
			t.Fatalf("no nonce, not in the page, or one used before: %q", nonce)
		}
		nonces[nonce[1]] = true
		// Whatever the page names is served, and nothing of elsewhere is.
		for _, ref := range regexp.MustCompile(`(?:src|href)="([^"]*)"`).FindAllStringSubmatch(page, -1) {
			if ref[1] == "data:," {
				continue
			}
			if !strings.HasPrefix(ref[1], "/") || strings.HasPrefix(ref[1], "//") {
				t.Errorf("the page refers to %s", ref[1])
			} else if got := getDocs(t, h, ref[1]); got.StatusCode != 200 {
				t.Errorf("%s: %d", ref[1], got.StatusCode)
			}
		}
	}
}

func TestDocsFiles(t *testing.T) {
	t.Parallel()
	h := docsHandler(t)
	for path, mediaType := range map[string]string{
		"/docs/redoc.js": "text/javascript; charset=utf-8", "/docs/start.js": "text/javascript; charset=utf-8",
		"/docs/page.css": "text/css; charset=utf-8", "/docs/redoc.txt": "text/plain; charset=utf-8",
		"/openapi.yaml": "application/yaml", "/openapi.json": "application/json",
	} {
		plain := getDocs(t, h, path)
		body := bodyOf(t, plain)
		if plain.StatusCode != 200 || plain.Header.Get("Content-Type") != mediaType || plain.Header.Get("X-Content-Type-Options") != "nosniff" ||
			plain.Header.Get("Content-Encoding") != "" || len(body) == 0 {
			t.Errorf("%s: %d %v, %d bytes", path, plain.StatusCode, plain.Header, len(body))
		}
		if bytes.Contains(body, []byte("cdn.")) && path != "/docs/redoc.txt" {
			t.Errorf("%s names a content delivery network", path)
		}
		zipped := getDocs(t, h, path, "Accept-Encoding", "br, gzip;q=0.5")
		if zipped.Header.Get("Content-Encoding") != "gzip" || zipped.Header.Get("Vary") != "Accept-Encoding" {
			t.Fatalf("%s: %v", path, zipped.Header)
		}
		r, err := gzip.NewReader(zipped.Body)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := io.ReadAll(r); err != nil || !bytes.Equal(got, body) {
			t.Errorf("%s: gzip has other bytes: %v", path, err)
		}
		for _, none := range []string{"gzip;q=0", "gzip; q=0.000", "br", ""} {
			if got := getDocs(t, h, path, "Accept-Encoding", none); got.Header.Get("Content-Encoding") != "" {
				t.Errorf("%s: %q gets %s", path, none, got.Header.Get("Content-Encoding"))
			}
		}
	}
	if got := bodyOf(t, getDocs(t, h, "/openapi.yaml")); !bytes.Equal(got, openapi.Contract()) {
		t.Error("/openapi.yaml is not the contract")
	}
	if !json.Valid(bodyOf(t, getDocs(t, h, "/openapi.json"))) {
		t.Error("/openapi.json is not JSON")
	}
	// Nothing beside these is served, also not what lies beside them.
	for _, path := range []string{"/docs/", "/docs/index.html", "/docs/redoc/SHA256SUMS", "/docs/../openapi.yaml", "/v1/status"} {
		if got := getDocs(t, h, path); got.StatusCode == 200 {
			t.Errorf("%s is served", path)
		}
	}
}
