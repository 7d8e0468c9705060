"""One sentence in each of 50 languages, and a few questions: what an export is compared with torch on.

Written by hand for this purpose, so that an export needs no data of its own. The sentence is "Maria has twelve apples and
gives five of them to her brother", more or less.
"""

from __future__ import annotations

SENTENCES: dict[str, str] = {
    "af": "Maria het twaalf appels en gee vyf daarvan vir haar broer.",
    "am": "ማሪያ አሥራ ሁለት ፖም አላት፣ አምስቱን ለወንድሟ ትሰጣለች።",
    "ar": "لدى ماريا اثنتا عشرة تفاحة وتعطي أخاها خمسًا منها.",
    "az": "Mariyanın on iki alması var və beşini qardaşına verir.",
    "bg": "Мария има дванадесет ябълки и дава пет от тях на брат си.",
    "bn": "মারিয়ার কাছে বারোটি আপেল আছে এবং সে তার ভাইকে পাঁচটি দেয়।",
    "ca": "La Maria té dotze pomes i en dona cinc al seu germà.",
    "cs": "Marie má dvanáct jablek a pět z nich dá svému bratrovi.",
    "da": "Maria har tolv æbler og giver fem af dem til sin bror.",
    "de": "Maria hat zwölf Äpfel und gibt ihrem Bruder fünf davon.",
    "el": "Η Μαρία έχει δώδεκα μήλα και δίνει πέντε στον αδελφό της.",
    "en": "Maria has twelve apples and gives five of them to her brother.",
    "es": "María tiene doce manzanas y le da cinco a su hermano.",
    "et": "Marial on kaksteist õuna ja ta annab viis neist oma vennale.",
    "eu": "Mariak hamabi sagar ditu eta bost ematen dizkio anaiari.",
    "fa": "ماریا دوازده سیب دارد و پنج تای آن را به برادرش می‌دهد.",
    "fi": "Marialla on kaksitoista omenaa, ja hän antaa niistä viisi veljelleen.",
    "fr": "Marie a douze pommes et en donne cinq à son frère.",
    "gu": "મારિયા પાસે બાર સફરજન છે અને તે પાંચ તેના ભાઈને આપે છે.",
    "ha": "Maria tana da tuffa goma sha biyu kuma ta ba ɗan'uwanta biyar.",
    "he": "למריה יש שנים עשר תפוחים והיא נותנת חמישה לאחיה.",
    "hi": "मारिया के पास बारह सेब हैं और वह अपने भाई को पाँच देती है।",
    "hr": "Marija ima dvanaest jabuka i pet daje svome bratu.",
    "hu": "Máriának tizenkét almája van, és ötöt odaad a testvérének.",
    "hy": "Մարիան ունի տասներկու խնձոր և հինգը տալիս է եղբորը։",
    "id": "Maria punya dua belas apel dan memberikan lima kepada adiknya.",
    "it": "Maria ha dodici mele e ne dà cinque a suo fratello.",
    "ja": "マリアはりんごを12個持っていて、弟に5個あげます。",
    "ka": "მარიას თორმეტი ვაშლი აქვს და ხუთს თავის ძმას აძლევს.",
    "kk": "Марияда он екі алма бар, ол бесеуін ініcіне береді.",
    "ko": "마리아는 사과 열두 개를 가지고 있고 남동생에게 다섯 개를 줍니다.",
    "lt": "Marija turi dvylika obuolių ir penkis atiduoda broliui.",
    "ml": "മരിയയ്ക്ക് പന്ത്രണ്ട് ആപ്പിളുണ്ട്, അഞ്ചെണ്ണം സഹോദരന് കൊടുക്കുന്നു.",
    "mr": "मारियाकडे बारा सफरचंदे आहेत आणि ती पाच आपल्या भावाला देते.",
    "nl": "Maria heeft twaalf appels en geeft er vijf aan haar broer.",
    "pl": "Maria ma dwanaście jabłek i pięć z nich daje bratu.",
    "pt": "Maria tem doze maçãs e dá cinco ao irmão.",
    "ro": "Maria are douăsprezece mere și îi dă cinci fratelui ei.",
    "ru": "У Марии двенадцать яблок, и пять из них она отдаёт брату.",
    "sv": "Maria har tolv äpplen och ger fem av dem till sin bror.",
    "sw": "Maria ana maapulo kumi na mawili na anampa kaka yake matano.",
    "ta": "மரியாவிடம் பன்னிரண்டு ஆப்பிள்கள் உள்ளன, ஐந்தை தன் தம்பிக்குக் கொடுக்கிறாள்.",
    "te": "మరియా దగ్గర పన్నెండు ఆపిల్స్ ఉన్నాయి, ఐదు తన తమ్ముడికి ఇస్తుంది.",
    "th": "มาเรียมีแอปเปิลสิบสองลูกและให้น้องชายห้าลูก",
    "tr": "Maria'nın on iki elması var ve beşini kardeşine veriyor.",
    "uk": "Марія має дванадцять яблук і віддає п'ять із них братові.",
    "ur": "ماریہ کے پاس بارہ سیب ہیں اور وہ پانچ اپنے بھائی کو دیتی ہے۔",
    "uz": "Mariyada o'n ikkita olma bor, u beshtasini akasiga beradi.",
    "vi": "Maria có mười hai quả táo và cho em trai năm quả.",
    "zh": "玛丽亚有十二个苹果，她给了弟弟五个。",
}

# Language and question: the bundle's golden examples where the user gives none.
QUESTIONS: tuple[tuple[str, str], ...] = (
    ("en", "What is 15 + 27?"),
    ("es", "¿Cuánto es 15 + 27?"),
    ("de", "Anna hat 8 Bücher und kauft 5 dazu. Wie viele Bücher hat sie?"),
    ("sw", "Juma ana mbuzi 9 na anauza 4. Amebaki na mbuzi wangapi?"),
    ("bn", "রিনার ১২টি আম আছে, সে ৫টি দেয়। তার কতটি আম আছে?"),
    ("zh", "小明有20元，买书花了13元，还剩多少元？"),
)

# What is right, where it is known: golden questions also say whether a quantised LLM still reckons.
ANSWERS: dict[str, str] = dict(
    zip((question for _, question in QUESTIONS), ("42", "42", "13", "5", "7", "7"), strict=True)
)
