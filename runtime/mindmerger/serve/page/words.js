// The sentences of the page in five languages. Keys are those of data-word; {names} are filled in.

export const NAMES = { en: "English", es: "Español", fr: "Français", hi: "हिन्दी", sw: "Kiswahili" };

export const WORDS = {
  en: {
    skip: "To the question", interface: "Language of this page", theme: "Colours",
    theme_auto: "As the system", theme_light: "Light", theme_dark: "Dark",
    question: "Your question, in any language", keys: "Enter asks, Shift+Enter begins a new line, Escape stops.",
    ask: "Ask", stop: "Stop", key: "API key of this service", examples: "Examples",
    steering: "Whom to trust", steering_hint: "Drag a bar: the question is answered anew with that weight.",
    encoder: "Trust the encoder", llm: "Trust the LLM", release: "Back to the model's own weights",
    language: "Language of the question", language_auto: "Found by the model", unknown: "another language",
    answer: "Answer", final: "Answer:", none: "no number", history: "Asked before", history_hint: "Kept in this browser only.",
    forget: "Forget all", forget_one: "Forget: {question}", own: "{weight} (the model's own)", set: "{weight} (yours)", left_out: "left out",
    detected: "Detected language", no_gate: "This bundle has no gate: its encoder reads any language, and both weights are 1 unless you set them.",
    waiting: "Waiting for a place …", answering: "Answering …", done: "Answered: {answer}", stopped: "Stopped.",
    figures: "{tokens} tokens in {seconds} s, {speed} tokens/s", cut: "The answer was cut at the limit of {tokens} tokens.",
    lost: "The service cannot be reached: is mm-serve running?", busy: "The service is busy; again in {seconds} s …",
    cut_off: "The connection ended in the middle of the answer.", need_key: "This service asks for its API key.",
  },
  es: {
    skip: "A la pregunta", interface: "Idioma de esta página", theme: "Colores",
    theme_auto: "Como el sistema", theme_light: "Claro", theme_dark: "Oscuro",
    question: "Tu pregunta, en cualquier idioma", keys: "Intro pregunta, Mayús+Intro empieza otra línea, Escape detiene.",
    ask: "Preguntar", stop: "Detener", key: "Clave API de este servicio", examples: "Ejemplos",
    steering: "En quién confiar", steering_hint: "Arrastra una barra: la pregunta se responde de nuevo con ese peso.",
    encoder: "Confiar en el codificador", llm: "Confiar en el LLM", release: "Volver a los pesos del modelo",
    language: "Idioma de la pregunta", language_auto: "El que halle el modelo", unknown: "otro idioma",
    answer: "Respuesta", final: "Respuesta:", none: "ningún número", history: "Preguntas anteriores", history_hint: "Guardadas solo en este navegador.",
    forget: "Olvidar todo", forget_one: "Olvidar: {question}", own: "{weight} (del modelo)", set: "{weight} (tuyo)", left_out: "omitido",
    detected: "Idioma detectado", no_gate: "Este bundle no tiene compuerta: su codificador lee cualquier idioma y ambos pesos son 1 si no los cambias.",
    waiting: "Esperando un lugar …", answering: "Respondiendo …", done: "Respondido: {answer}", stopped: "Detenido.",
    figures: "{tokens} tokens en {seconds} s, {speed} tokens/s", cut: "La respuesta se cortó en el límite de {tokens} tokens.",
    lost: "No se alcanza el servicio: ¿está mm-serve en marcha?", busy: "El servicio está ocupado; otra vez en {seconds} s …",
    cut_off: "La conexión terminó en medio de la respuesta.", need_key: "Este servicio pide su clave API.",
  },
  fr: {
    skip: "À la question", interface: "Langue de cette page", theme: "Couleurs",
    theme_auto: "Comme le système", theme_light: "Clair", theme_dark: "Sombre",
    question: "Votre question, dans n'importe quelle langue", keys: "Entrée pose la question, Maj+Entrée va à la ligne, Échap arrête.",
    ask: "Demander", stop: "Arrêter", key: "Clé d'API de ce service", examples: "Exemples",
    steering: "À qui se fier", steering_hint: "Glissez une barre : la question reçoit une nouvelle réponse avec ce poids.",
    encoder: "Se fier à l'encodeur", llm: "Se fier au LLM", release: "Revenir aux poids du modèle",
    language: "Langue de la question", language_auto: "Trouvée par le modèle", unknown: "une autre langue",
    answer: "Réponse", final: "Réponse :", none: "aucun nombre", history: "Questions précédentes", history_hint: "Gardées dans ce navigateur seulement.",
    forget: "Tout oublier", forget_one: "Oublier : {question}", own: "{weight} (du modèle)", set: "{weight} (le vôtre)", left_out: "écarté",
    detected: "Langue détectée", no_gate: "Ce bundle n'a pas de porte : son encodeur lit toutes les langues, et les deux poids valent 1 sauf si vous les fixez.",
    waiting: "En attente d'une place …", answering: "Réponse en cours …", done: "Répondu : {answer}", stopped: "Arrêté.",
    figures: "{tokens} tokens en {seconds} s, {speed} tokens/s", cut: "La réponse a été coupée à la limite de {tokens} tokens.",
    lost: "Le service est injoignable : mm-serve tourne-t-il ?", busy: "Le service est occupé ; nouvel essai dans {seconds} s …",
    cut_off: "La connexion s'est terminée au milieu de la réponse.", need_key: "Ce service demande sa clé d'API.",
  },
  hi: {
    skip: "प्रश्न पर जाएँ", interface: "इस पृष्ठ की भाषा", theme: "रंग",
    theme_auto: "सिस्टम जैसा", theme_light: "हल्का", theme_dark: "गहरा",
    question: "आपका प्रश्न, किसी भी भाषा में", keys: "Enter पूछता है, Shift+Enter नई पंक्ति, Escape रोकता है।",
    ask: "पूछें", stop: "रोकें", key: "इस सेवा की API कुंजी", examples: "उदाहरण",
    steering: "किस पर भरोसा करें", steering_hint: "पट्टी खींचें: प्रश्न का उत्तर उस भार के साथ फिर से दिया जाएगा।",
    encoder: "एनकोडर पर भरोसा", llm: "LLM पर भरोसा", release: "मॉडल के अपने भार पर लौटें",
    language: "प्रश्न की भाषा", language_auto: "मॉडल स्वयं पहचाने", unknown: "कोई अन्य भाषा",
    answer: "उत्तर", final: "उत्तर:", none: "कोई संख्या नहीं", history: "पहले पूछे गए", history_hint: "केवल इस ब्राउज़र में रखे जाते हैं।",
    forget: "सब भूल जाएँ", forget_one: "भूल जाएँ: {question}", own: "{weight} (मॉडल का)", set: "{weight} (आपका)", left_out: "छोड़ा गया",
    detected: "पहचानी गई भाषा", no_gate: "इस बंडल में गेट नहीं है: इसका एनकोडर हर भाषा पढ़ता है, और दोनों भार 1 हैं जब तक आप न बदलें।",
    waiting: "जगह की प्रतीक्षा …", answering: "उत्तर दिया जा रहा है …", done: "उत्तर: {answer}", stopped: "रोका गया।",
    figures: "{seconds} सेकंड में {tokens} टोकन, {speed} टोकन/सेकंड", cut: "उत्तर {tokens} टोकन की सीमा पर काटा गया।",
    lost: "सेवा तक पहुँच नहीं है: क्या mm-serve चल रहा है?", busy: "सेवा व्यस्त है; {seconds} सेकंड में फिर …",
    cut_off: "उत्तर के बीच में कनेक्शन टूट गया।", need_key: "यह सेवा अपनी API कुंजी माँगती है।",
  },
  sw: {
    skip: "Nenda kwenye swali", interface: "Lugha ya ukurasa huu", theme: "Rangi",
    theme_auto: "Kama mfumo", theme_light: "Angavu", theme_dark: "Giza",
    question: "Swali lako, kwa lugha yoyote", keys: "Enter huuliza, Shift+Enter huanza mstari mpya, Escape husimamisha.",
    ask: "Uliza", stop: "Simamisha", key: "Ufunguo wa API wa huduma hii", examples: "Mifano",
    steering: "Nani aaminiwe", steering_hint: "Buruta mwambaa: swali hujibiwa upya kwa uzito huo.",
    encoder: "Amini kisimbaji", llm: "Amini LLM", release: "Rudi kwenye uzito wa modeli yenyewe",
    language: "Lugha ya swali", language_auto: "Itambuliwe na modeli", unknown: "lugha nyingine",
    answer: "Jibu", final: "Jibu:", none: "hakuna namba", history: "Yaliyoulizwa kabla", history_hint: "Yanahifadhiwa kwenye kivinjari hiki tu.",
    forget: "Sahau yote", forget_one: "Sahau: {question}", own: "{weight} (wa modeli)", set: "{weight} (wako)", left_out: "imeachwa",
    detected: "Lugha iliyotambuliwa", no_gate: "Kifurushi hiki hakina lango: kisimbaji chake husoma lugha yoyote, na uzito zote mbili ni 1 usipozibadilisha.",
    waiting: "Inasubiri nafasi …", answering: "Inajibu …", done: "Imejibiwa: {answer}", stopped: "Imesimamishwa.",
    figures: "Tokeni {tokens} kwa sekunde {seconds}, tokeni {speed} kwa sekunde", cut: "Jibu lilikatwa kwenye kikomo cha tokeni {tokens}.",
    lost: "Huduma haipatikani: je, mm-serve inaendeshwa?", busy: "Huduma ina shughuli; tena baada ya sekunde {seconds} …",
    cut_off: "Muunganisho ulikatika katikati ya jibu.", need_key: "Huduma hii inaomba ufunguo wake wa API.",
  },
};

/** The first of the browser's languages that the page has. */
export function preferred(languages) {
  return languages.map((one) => one.toLowerCase().split("-")[0]).find((one) => one in WORDS) ?? "en";
}

/** A sentence with its figures. */
export function say(language, key, figures = {}) {
  const sentence = WORDS[language]?.[key] ?? WORDS.en[key];
  return sentence.replace(/\{(\w+)\}/g, (whole, name) => (name in figures ? String(figures[name]) : whole));
}
