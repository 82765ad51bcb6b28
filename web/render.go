package web

import (
	"bytes"
	"compress/gzip"
	"embed"
	"errors"
	"fmt"
	"html/template"
	"io/fs"
	"net/http"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"

	openapi_types "github.com/oapi-codegen/runtime/types"

	"kluis/meter"
)

//go:embed templates/*.html
var templateFiles embed.FS

// templates are the pages in one language.
type templates struct{ pages map[string]*template.Template }

// parseTemplates parses each page once per language, over the layout and the
// partials: a name in one page is nothing to another.
func (p *Portal) parseTemplates() error {
	names, err := fs.Glob(templateFiles, "templates/*.html")
	if err != nil {
		return err
	}
	p.templates = map[string]*templates{}
	for _, lang := range languages {
		base, err := template.New("layout").Funcs(p.funcs(lang)).Option("missingkey=error").
			ParseFS(templateFiles, "templates/layout.html", "templates/partials.html")
		if err != nil {
			return fmt.Errorf("web: %w", err)
		}
		set := &templates{map[string]*template.Template{}}
		for _, file := range names {
			name := strings.TrimSuffix(path.Base(file), ".html")
			if name == "layout" || name == "partials" {
				continue
			}
			t, err := base.Clone()
			if err == nil {
				t, err = t.ParseFS(templateFiles, file)
			}
			if err != nil {
				return fmt.Errorf("web: %w", err)
			}
			set.pages[name] = t
		}
		p.templates[lang] = set
	}
	return nil
}

// view is what a template gets: .Data is the page's own.
type view struct {
	*visit
	Page   string // name of the page
	Title  string
	Path   string // of the request, to come back to
	Nav    []link
	Tabs   []link // of the open case
	Themes []string
	Data   any
}

// link is a place to go to.
type link struct {
	Name, Path string // text nav.NAME
	Here       bool
}

// page answers with a page: templates/NAME.html, with its title in the text
// NAME.title. Its data is .Data in the template.
func (p *Portal) page(w http.ResponseWriter, r *http.Request, name string, data any) error {
	return p.render(w, r, http.StatusOK, name, data)
}

// part answers with a part of a page, for htmx: the template that the page
// defines under that name, with the same data as in the page.
func (p *Portal) part(w http.ResponseWriter, r *http.Request, page, part string, data any) error {
	return p.render(w, r, http.StatusOK, page+"/"+part, data)
}

// render renders into memory first: an error on the way is a page of its own, not
// half of this one. A name with a slash is that of a part.
func (p *Portal) render(w http.ResponseWriter, r *http.Request, status int, name string, data any) error {
	v := visitOf(r)
	name, part, isPart := strings.Cut(name, "/")
	t := p.templates[v.Lang].pages[name]
	if t == nil {
		return fmt.Errorf("there is no page %q", name)
	}
	vw := &view{visit: v, Page: name, Path: localPath(r.URL.Path), Themes: themes, Data: data}
	if pr, ok := data.(Problem); ok {
		vw.Title = allTexts.in(v.Lang, "problem."+pr.Name)
	} else {
		vw.Title = allTexts.in(v.Lang, name+".title")
	}
	p.links(vw)
	if !isPart {
		part = "layout"
	}
	var b bytes.Buffer
	if err := t.ExecuteTemplate(&b, part, vw); err != nil {
		return fmt.Errorf("page %s: %w", name, err)
	}
	h := w.Header()
	h.Set("Content-Type", "text/html; charset=utf-8")
	h.Set("Content-Language", v.Lang)
	h.Add("Vary", "Accept-Encoding, Accept-Language, Cookie")
	body := b.Bytes()
	if takesGzip(r) && len(body) > 1000 {
		h.Set("Content-Encoding", "gzip")
		body = gzipped(body, gzip.BestSpeed)
	}
	h.Set("Content-Length", strconv.Itoa(len(body)))
	w.WriteHeader(status)
	if r.Method != http.MethodHead {
		_, _ = w.Write(body) // who went away needs no answer
	}
	return nil
}

// links are where an employee can go from here.
func (p *Portal) links(vw *view) {
	if vw.Session == nil {
		return
	}
	for _, e := range navigation {
		if p.may(vw.Session.Role, e.path) {
			vw.Nav = append(vw.Nav, link{e.name, e.path, vw.route.path == e.path || e.path == "/" && vw.Case != nil})
		}
	}
	if vw.Case == nil {
		return
	}
	for _, e := range tabs {
		if p.may(vw.Session.Role, e.path) {
			here := vw.route.path == e.path || e.path != "/c/{case}" && strings.HasPrefix(vw.route.path, e.path+"/")
			vw.Tabs = append(vw.Tabs, link{e.name, strings.Replace(e.path, "{case}", vw.Case.ID, 1), here})
		}
	}
}

// Term is what the partial "term" needs to explain a word: {{template "term"
// (.Term "consent")}}. The texts are term.NAME and term.NAME.means.
func (v *view) Term(name string) (map[string]string, error) {
	for _, key := range []string{"term." + name, "term." + name + ".means"} {
		if _, ok := allTexts[key]; !ok {
			return nil, fmt.Errorf("there is no text %q", key)
		}
	}
	v.terms++
	return map[string]string{"ID": fmt.Sprintf("term-%d", v.terms), "Word": allTexts.in(v.Lang, "term."+name), "Means": allTexts.in(v.Lang, "term."+name+".means")}, nil
}

// funcs are what templates can call besides their data.
func (p *Portal) funcs(lang string) template.FuncMap {
	zone := p.profile.Location()
	return template.FuncMap{
		// t is a text, with what it has room for: {{t "find.cases" 3}}.
		"t": func(key string, args ...any) (string, error) { return allTexts.format(lang, key, args...) },
		// tn is a text that has a number: KEY.one or KEY.other.
		"tn": func(key string, n int, args ...any) (string, error) {
			return allTexts.format(lang, plural(key, n), append([]any{n}, args...)...)
		},
		"has":    func(key string) bool { _, ok := allTexts[key]; return ok },
		"static": p.static.url,
		// ean is a metering point in groups, as people read it aloud.
		"ean": func(e any) string { return groups(fmt.Sprint(e)) },
		// day is a local day: of a meter.Day, a day of the contract, or an instant.
		"day": func(v any) (template.HTML, error) { return dayHTML(lang, zone, v) },
		// when is an instant in the market's zone, whenz with the zone's name.
		"when":  func(v any) (template.HTML, error) { return whenHTML(lang, zone, v, false) },
		"whenz": func(v any) (template.HTML, error) { return whenHTML(lang, zone, v, true) },
		"zone":  zone.String,
		// month is a month with its year, weekday the day of the week of a local day.
		"month":    func(d meter.Day) string { y, m, _ := d.Date(); return months[lang][m-1] + "\u00a0" + strconv.Itoa(y) },
		"weekday":  func(d meter.Day) string { return weekdays[lang][(int(d.Start(time.UTC).Weekday())+6)%7] },
		"weekdays": func() []string { return weekdays[lang] },
		// number is a whole number with its thousands apart.
		"number": func(n any) string { return number(lang, fmt.Sprint(n)) },
		// dict makes the data of a partial: {{template "alert" (dict "Kind" "warn" "Text" (t "…"))}}.
		"dict": dict,
	}
}

func dict(pairs ...any) (map[string]any, error) {
	if len(pairs)%2 != 0 {
		return nil, errors.New("dict: a name without a value")
	}
	m := map[string]any{}
	for i := 0; i < len(pairs); i += 2 {
		name, ok := pairs[i].(string)
		if !ok {
			return nil, errors.New("dict: a name that is no string")
		}
		m[name] = pairs[i+1]
	}
	return m, nil
}

// groups sets the digits of an EAN in groups of four.
func groups(s string) string {
	if len(s) != 18 {
		return s
	}
	return s[:4] + " " + s[4:8] + " " + s[8:12] + " " + s[12:16] + " " + s[16:]
}

func number(lang, digits string) string {
	sep := "\u202f"
	if lang == "nl" {
		sep = "."
	}
	sign := ""
	if strings.HasPrefix(digits, "-") {
		sign, digits = "−", digits[1:]
	}
	whole, frac, has := strings.Cut(digits, ".")
	var parts []string
	for len(whole) > 3 {
		parts = append(parts, whole[len(whole)-3:])
		whole = whole[:len(whole)-3]
	}
	parts = append(parts, whole)
	slices.Reverse(parts)
	out := sign + strings.Join(parts, sep)
	if has {
		point := "."
		if lang == "nl" {
			point = ","
		}
		out += point + frac
	}
	return out
}

var months = map[string][]string{
	"nl": {"jan", "feb", "mrt", "apr", "mei", "jun", "jul", "aug", "sep", "okt", "nov", "dec"},
	"en": {"Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"},
}

// weekdays begin on Monday.
var weekdays = map[string][]string{
	"nl": {"maandag", "dinsdag", "woensdag", "donderdag", "vrijdag", "zaterdag", "zondag"},
	"en": {"Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"},
}

func dayWords(lang string, y int, m time.Month, d int) string {
	return fmt.Sprintf("%d\u00a0%s\u00a0%d", d, months[lang][m-1], y)
}

func dayHTML(lang string, zone *time.Location, v any) (template.HTML, error) {
	var t time.Time
	switch v := v.(type) {
	case meter.Day:
		y, m, d := v.Date()
		t = time.Date(y, m, d, 0, 0, 0, 0, time.UTC)
	case *meter.Day:
		return dayHTML(lang, zone, *v)
	case openapi_types.Date:
		t = v.Time
	case *openapi_types.Date:
		t = v.Time
	case time.Time:
		t = v.In(zone)
	case *time.Time:
		t = v.In(zone)
	default:
		return "", fmt.Errorf("day of a %T", v)
	}
	y, m, d := t.Date()
	return template.HTML(fmt.Sprintf(`<time datetime="%04d-%02d-%02d">%s</time>`, y, m, d, dayWords(lang, y, m, d))), nil
}

func whenHTML(lang string, zone *time.Location, v any, named bool) (template.HTML, error) {
	var t time.Time
	switch v := v.(type) {
	case time.Time:
		t = v
	case *time.Time:
		t = *v
	default:
		return "", fmt.Errorf("when of a %T", v)
	}
	t = t.In(zone)
	y, m, d := t.Date()
	words := fmt.Sprintf("%s\u00a0%02d:%02d", dayWords(lang, y, m, d), t.Hour(), t.Minute())
	if named {
		words += "\u00a0" + t.Format("MST")
	}
	return template.HTML(fmt.Sprintf(`<time datetime="%s">%s</time>`, t.Format(time.RFC3339), words)), nil
}
