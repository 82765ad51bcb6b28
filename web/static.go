package web

import (
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"fmt"
	"io/fs"
	"net/http"
	"path"
	"regexp"
	"strconv"
	"strings"

	"github.com/go-chi/chi/v5"
)

//go:embed static
var staticFiles embed.FS

// mediaTypes of the files that are served; others are not.
var mediaTypes = map[string]string{
	".css": "text/css; charset=utf-8", ".js": "text/javascript; charset=utf-8", ".svg": "image/svg+xml",
}

// static are the files under their served names, which change with their contents:
// a browser keeps them for ever.
type static struct {
	names map[string]string // served name, by file name
	files map[string]asset  // by served name
}

type asset struct {
	mediaType     string
	body, gzipped []byte
}

// dataURL is a picture that a stylesheet brings along.
var dataURL = regexp.MustCompile(`url\((?:"data:[^"]*"|'data:[^']*'|data:[^)]*)\)`)

func newStatic() (*static, error) {
	s := &static{map[string]string{}, map[string]asset{}}
	err := fs.WalkDir(staticFiles, "static", func(file string, d fs.DirEntry, err error) error {
		mediaType := mediaTypes[path.Ext(file)]
		if err != nil || d.IsDir() || mediaType == "" {
			return err
		}
		body, err := staticFiles.ReadFile(file)
		if err != nil {
			return err
		}
		name := path.Base(file)
		if name == "pico.css" {
			// Its pictures are data: addresses, which the policy forbids.
			body = dataURL.ReplaceAll(body, []byte("none"))
		}
		if s.names[name] != "" {
			return fmt.Errorf("web: two static files are called %s", name)
		}
		sum := sha256.Sum256(body)
		ext := path.Ext(name)
		s.names[name] = strings.TrimSuffix(name, ext) + "-" + hex.EncodeToString(sum[:6]) + ext
		s.files[s.names[name]] = asset{mediaType, body, gzipped(body, gzip.BestCompression)}
		return nil
	})
	return s, err
}

// url is the address of a file of web/static, whatever folder it is in.
func (s *static) url(name string) (string, error) {
	served, ok := s.names[name]
	if !ok {
		return "", fmt.Errorf("there is no static file %q", name)
	}
	return "/static/" + served, nil
}

func (p *Portal) staticFile(w http.ResponseWriter, r *http.Request) error {
	a, ok := p.static.files[chi.URLParam(r, "name")]
	if !ok {
		return errNoPage
	}
	h := w.Header()
	h.Set("Content-Type", a.mediaType)
	h.Set("Cache-Control", "public, max-age=31536000, immutable")
	h.Set("Vary", "Accept-Encoding")
	body := a.body
	if takesGzip(r) {
		h.Set("Content-Encoding", "gzip")
		body = a.gzipped
	}
	h.Set("Content-Length", strconv.Itoa(len(body)))
	_, _ = w.Write(body) // who went away needs no answer
	return nil
}

func gzipped(b []byte, level int) []byte {
	var buf bytes.Buffer
	z, err := gzip.NewWriterLevel(&buf, level)
	if err == nil {
		_, err = z.Write(b)
	}
	if err == nil {
		err = z.Close()
	}
	if err != nil {
		panic(err) // memory does not fail
	}
	return buf.Bytes()
}

// takesGzip: the browser names gzip, and does not rule it out.
func takesGzip(r *http.Request) bool {
	for part := range strings.SplitSeq(strings.Join(r.Header.Values("Accept-Encoding"), ","), ",") {
		coding, q, _ := strings.Cut(part, ";")
		if strings.EqualFold(strings.TrimSpace(coding), "gzip") {
			return !strings.HasPrefix(strings.ReplaceAll(q, " ", ""), "q=0") || strings.Trim(q, " q=0.") != ""
		}
	}
	return false
}
