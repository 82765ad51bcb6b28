package web

// consentsRoutes are those of templates/consents.html.
func (p *Portal) consentsRoutes() []route { return nil }
