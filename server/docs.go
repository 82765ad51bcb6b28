package server

import (
	"bytes"
	"compress/gzip"
	"crypto/rand"
	"embed"
	"errors"
	"fmt"
	"html/template"
	"net/http"
	"strconv"
	"strings"
	"sync"

	"github.com/go-chi/chi/v5"

	"kluis/openapi"
)

// What /docs shows lies in the program: nothing is fetched from elsewhere.
//
//go:embed docs/index.html docs/page.css docs/start.js docs/redoc
var docsFiles embed.FS

// docsPaths are those of the documentation and the contract itself. They want
// no token, hold nothing secret and are no operations of the contract.
var docsPaths = []string{"/docs", "/docs/page.css", "/docs/start.js", "/docs/redoc.js", "/docs/redoc.txt", "/openapi.yaml", "/openapi.json"}

const (
	// redocPicture is the one thing that Redoc would fetch from elsewhere, a
	// logo. Without it Redoc leaves its place empty.
	redocPicture = "https://cdn.redoc.ly/redoc/logo-mini.svg"
	// docsPolicy lets the page run the scripts of this server, ask it for the
	// contract, and make styles under the answer's nonce: nothing inline,
	// nothing evaluated, nothing from or to anywhere else. Two style elements
	// are made before Redoc is told the nonce, and are known by their hashes: an
	// empty one, and the scrollbars'.
	docsPolicy = "default-src 'none'; script-src 'self'; " +
		"style-src 'self' 'nonce-%s' 'sha256-47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=' 'sha256-QMIg+bpjm3JdElJ388KYke01izlUW0UoNOeKjpMxdgc='; " +
		"img-src 'self' data:; connect-src 'self'; " +
		"base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)

// asset is a file as it is sent.
type asset struct {
	mediaType string
	body      []byte
	gzipped   func() []byte // made when it is first asked for
}

// docs serves the documentation. It is made once, so that a request costs next
// to nothing, and a server that is asked for none as little.
type docs struct {
	page  *template.Template
	files map[string]asset // by path
}

// newDocs is the same for all servers of the process: nothing changes it.
var newDocs = sync.OnceValues(makeDocs)

func makeDocs() (*docs, error) {
	contract := openapi.Contract()
	inJSON, err := openapi.JSON()
	if err != nil {
		return nil, err
	}
	read := func(name string) []byte {
		b, readErr := docsFiles.ReadFile("docs/" + name)
		err = errors.Join(err, readErr)
		return b
	}
	const script, text = "text/javascript; charset=utf-8", "text/plain; charset=utf-8"
	redoc := read("redoc/redoc.standalone.js")
	if n := bytes.Count(redoc, []byte(redocPicture)); n != 1 {
		return nil, fmt.Errorf("server: Redoc's picture is mentioned %d times", n)
	}
	files := map[string]asset{
		"/openapi.yaml":   {mediaType: "application/yaml", body: contract},
		"/openapi.json":   {mediaType: "application/json", body: inJSON},
		"/docs/page.css":  {mediaType: "text/css; charset=utf-8", body: read("page.css")},
		"/docs/start.js":  {mediaType: script, body: read("start.js")},
		"/docs/redoc.js":  {mediaType: script, body: bytes.Replace(redoc, []byte(redocPicture), []byte("data:,"), 1)},
		"/docs/redoc.txt": {mediaType: text, body: append(read("redoc/LICENSE"), read("redoc/redoc.standalone.js.LICENSE.txt")...)},
	}
	page := read("index.html")
	if err != nil {
		return nil, err
	}
	d := &docs{files: files}
	if d.page, err = template.New("docs").Parse(string(page)); err != nil {
		return nil, err
	}
	for path, f := range files {
		f.gzipped = sync.OnceValue(func() []byte { return gzipOf(f.body) })
		files[path] = f
	}
	return d, nil
}

func gzipOf(body []byte) []byte {
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	_, _ = w.Write(body) // into memory
	_ = w.Close()
	return b.Bytes()
}

// route adds the paths of the documentation.
func (d *docs) route(mux chi.Router) {
	for _, path := range docsPaths {
		serve := d.file
		if path == "/docs" {
			serve = d.index
		}
		mux.Get(path, func(w http.ResponseWriter, r *http.Request) {
			eventOf(r.Context()).route = path
			serve(w, r)
		})
	}
}

func (d *docs) index(w http.ResponseWriter, _ *http.Request) {
	nonce := rand.Text()
	var b bytes.Buffer
	if err := d.page.Execute(&b, nonce); err != nil {
		panic(err) // the template is part of the program
	}
	w.Header().Set("Content-Security-Policy", fmt.Sprintf(docsPolicy, nonce))
	w.Header().Set("Referrer-Policy", "no-referrer")
	w.Header().Set("Cross-Origin-Opener-Policy", "same-origin")
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	_, _ = w.Write(b.Bytes()) // who went away needs no answer
}

func (d *docs) file(w http.ResponseWriter, r *http.Request) {
	f := d.files[r.URL.Path]
	h := w.Header()
	h.Set("Content-Type", f.mediaType)
	// Opened by itself, no file does anything.
	h.Set("Content-Security-Policy", "default-src 'none'; frame-ancestors 'none'; sandbox")
	h.Set("Cross-Origin-Resource-Policy", "same-origin")
	h.Set("Vary", "Accept-Encoding")
	body := f.body
	if takesGzip(r) {
		h.Set("Content-Encoding", "gzip")
		body = f.gzipped()
	}
	h.Set("Content-Length", strconv.Itoa(len(body)))
	_, _ = w.Write(body)
}

// takesGzip: the caller names gzip, and does not rule it out. More is not made
// of the header for files that every browser takes.
func takesGzip(r *http.Request) bool {
	for part := range strings.SplitSeq(strings.Join(r.Header.Values("Accept-Encoding"), ","), ",") {
		coding, q, _ := strings.Cut(part, ";")
		if strings.EqualFold(strings.TrimSpace(coding), "gzip") {
			return !strings.HasPrefix(strings.ReplaceAll(q, " ", ""), "q=0") || strings.Trim(q, " q=0.") != ""
		}
	}
	return false
}
